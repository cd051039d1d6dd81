using System.IO;
using System.Linq;
using System.Text;
using NextScale;

internal static class Minimal
{
    private static void Main(string[] args)  // BUNDLE CLASS OUT.ppm
    {
        using (var generator = new Generator(args[0]))
        {
            long label = generator.Bundle.ClassLabel(args[1]);
            Generation made = generator.Generate(new GenerationRequest(label) { Seed = 7 });
            byte[] header = Encoding.ASCII.GetBytes($"P6\n{made.Width} {made.Height}\n255\n");
            File.WriteAllBytes(args[2], header.Concat(made.Images[0]).ToArray());
        }
    }
}
