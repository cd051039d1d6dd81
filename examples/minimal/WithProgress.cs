using System;
using System.IO;
using System.Linq;
using System.Text;
using System.Threading;
using NextScale;

internal sealed class Show : IProgress<StageProgress>
{
    public string File;

    public void Report(StageProgress stage)
    {
        Console.WriteLine($"stage {stage.Stage + 1} of {stage.NumStages}");
        WithProgress.WritePpm(File, stage.Preview()[0], stage.Height, stage.Width);
    }
}

internal static class WithProgress
{
    internal static void WritePpm(string path, byte[] rgb, int height, int width)
    {
        File.WriteAllBytes(path, Encoding.ASCII.GetBytes($"P6\n{width} {height}\n255\n").Concat(rgb).ToArray());
    }

    private static int Main(string[] args)  // BUNDLE CLASS OUT.ppm
    {
        var interrupted = new CancellationTokenSource();
        Console.CancelKeyPress += (sender, pressed) => { pressed.Cancel = true; interrupted.Cancel(); };
        try
        {
            using (var generator = new Generator(args[0]))
            {
                generator.Load("stage", "decoder");  // at the program's start, not at first use
                var request = new GenerationRequest(generator.Bundle.ClassLabel(args[1])) { Seed = 7 };
                var show = new Show { File = args[2] };
                Generation made = generator.Generate(request, show, interrupted.Token);
                WritePpm(args[2], made.Images[0], made.Height, made.Width);
                return 0;
            }
        }
        catch (OperationCanceledException cancelled)
        {
            Console.Error.WriteLine(cancelled.Message);
            return 130;
        }
        catch (NextScaleException error)
        {
            Console.Error.WriteLine($"error: {error.Message}");
            return 2;
        }
    }
}
