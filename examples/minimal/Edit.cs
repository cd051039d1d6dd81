using System.IO;
using System.Linq;
using System.Text;
using NextScale;

internal static class Edit
{
    private static void Main(string[] args)  // BUNDLE CLASS OUT.ppm
    {
        using (var generator = new Generator(args[0]))
        {
            long label = generator.Bundle.ClassLabel(args[1]);
            Generation made = generator.Generate(new GenerationRequest(label) { Seed = 7 });
            byte[] image = made.Images[0];  // or your own picture of that size
            var mask = new bool[made.Height, made.Width];
            for (int y = 0; y < made.Height; y++)
                for (int x = made.Width / 2; x < made.Width; x++) mask[y, x] = true;  // the right half
            made = generator.Edit(image, mask, new GenerationRequest(label) { Seed = 8 });
            byte[] header = Encoding.ASCII.GetBytes($"P6\n{made.Width} {made.Height}\n255\n");
            File.WriteAllBytes(args[2], header.Concat(made.Images[0]).ToArray());
        }
    }
}
