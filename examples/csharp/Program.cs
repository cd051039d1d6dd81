// The console program: pictures, speed and conformance of bundles.

using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Security.Cryptography;
using System.Threading;

namespace NextScale
{
    internal static class Program
    {
        private const string Usage =
@"usage: nextscale generate BUNDLE --class ID|NAME|null... --out FILE.png [--seed S|random] [--first-image I]
                          [--cfg-scale C] [--top-k K] [--top-p P] [--tau T] [--batch N] [--threads N]
                          [--no-spinning] [--ops auto|stock|fused] [--ops-library FILE] [--progress]
       nextscale generate BUNDLE --prompt TEXT... [--negative TEXT] [--area 0.25M] [--ratio 3:4] --out FILE.png [...]
       nextscale bench BUNDLE... [--form generate|streaming]... [--batch N] [--repetitions N] [--warmup N]
                          [--threads N] [--no-spinning] [--ops auto|stock|fused] [--ops-library FILE]
       nextscale bench-worker BUNDLE [--form generate|streaming] [--threads N] [--no-spinning]
                          [--ops auto|stock|fused] [--ops-library FILE]
       nextscale conformance FOLDER";

        /// <returns>0 done; 1 a check failed; 2 bad usage or input; 130 interrupted.</returns>
        private static int Main(string[] words)
        {
            try
            {
                if (words.Length == 0 || words[0] == "--help")
                {
                    (words.Length == 0 ? Console.Error : Console.Out).WriteLine(Usage);
                    return words.Length == 0 ? 2 : 0;
                }
                var arguments = new Arguments(words.Skip(1));
                switch (words[0])
                {
                    case "generate":
                        return Generate(arguments);
                    case "bench":
                        return Bench.Run(arguments);
                    case "bench-worker":
                        return BenchWorker.Run(arguments);
                    case "conformance":
                        string folder = arguments.Operands("FOLDER", 1, 1)[0];
                        arguments.RequireAllUsed();
                        return Conformance.Run(folder);
                    default:
                        throw new UsageException($"no command \"{Wording.Printable(words[0])}\"; --help lists them");
                }
            }
            catch (Exception error) when (error is UsageException || error is NextScaleException)
            {
                Console.Error.WriteLine($"nextscale: {error.Message}");
                return 2;
            }
            catch (OutOfMemoryException)
            {
                Console.Error.WriteLine("nextscale: out of memory: fewer images at a time need less");
                return 2;
            }
            catch (OperationCanceledException error)
            {
                Console.Error.WriteLine($"nextscale: {error.Message}");
                return 130;
            }
        }

        private static int Generate(Arguments arguments)
        {
            string folder = arguments.Operands("BUNDLE", 1, 1)[0];
            string[] classes = arguments.Values("--class"), prompts = arguments.Values("--prompt");
            string negative = arguments.Value("--negative", null, text => text);
            string area = arguments.Value("--area", null, text => text);
            string ratio = arguments.Value("--ratio", null, text => text);
            string output = arguments.Value("--out", null, text => text);
            ulong? seed = arguments.Value("--seed", (ulong?)0UL, Arguments.Seed);
            ulong firstImage = arguments.Value("--first-image", 0UL, Arguments.UInt64);
            Scalar cfgScale = arguments.Value("--cfg-scale", null, text => (Scalar)Arguments.Number(text));
            Scalar topK = arguments.Value("--top-k", null, text => (Scalar)Arguments.Int64(text));
            Scalar topP = arguments.Value("--top-p", null, text => (Scalar)Arguments.Number(text));
            Scalar tau = arguments.Value("--tau", null, text => (Scalar)Arguments.Number(text));
            int batch = arguments.Value("--batch", 4, Arguments.Int32);
            bool showProgress = arguments.Flag("--progress");
            GeneratorOptions options = arguments.Options();
            arguments.RequireAllUsed();
            if (output == null) throw new UsageException("generate: name the picture with --out FILE.png");

            using (var cancellation = new CancellationTokenSource())
            using (var generator = new Generator(folder, options))
            {
                bool takesClasses = generator.Bundle.InputOfKind("label") != null;
                if (takesClasses && prompts.Length > 0)
                    throw new UsageException("--prompt: this bundle makes pictures of classes: give --class");
                if (!takesClasses && classes.Length > 0)
                    throw new UsageException("--class: this bundle makes pictures of prompts: give --prompt");
                if (classes.Length + prompts.Length == 0)
                    throw new UsageException(
                        "generate: name at least one " + (takesClasses ? "--class ID or NAME" : "--prompt TEXT"));
                string[] paths = PngFile.Paths(output, classes.Length + prompts.Length);
                Console.CancelKeyPress += (sender, pressed) =>
                {
                    pressed.Cancel = true;
                    cancellation.Cancel();
                };
                var request = new GenerationRequest(classes.Select(generator.Bundle.ClassLabel).ToArray())
                {
                    Seed = seed ?? DrawnSeed(),
                    FirstImage = firstImage,
                    CfgScale = cfgScale,
                    TopK = topK,
                    TopP = topP,
                    Tau = tau,
                    Prompts = takesClasses ? null : prompts,
                    Negative = negative,
                    Area = area,
                    Ratio = ratio,
                    BatchSize = batch,
                };
                if (seed == null) Console.Error.WriteLine($"seed {request.Seed}");
                var progress = new Telling(stage => Console.Error.WriteLine(
                    $"image {stage.First + 1}, stage {stage.Stage + 1} of {stage.NumStages}"));
                Generation made = generator.Generate(request, showProgress ? progress : null, cancellation.Token);
                for (int i = 0; i < paths.Length; i++)
                {
                    PngFile.Write(paths[i], made.Images[i], made.Height, made.Width);
                    Console.WriteLine(paths[i]);
                }
            }
            return 0;
        }

        /// <summary>A seed of 53 bits, which every language's JSON has exactly.</summary>
        private static ulong DrawnSeed()
        {
            var bytes = new byte[8];
            using (RandomNumberGenerator random = RandomNumberGenerator.Create()) random.GetBytes(bytes);
            return BitConverter.ToUInt64(bytes, 0) >> 11;
        }
    }

    /// <summary>Progress that is told at once, on the thread that generates.</summary>
    internal sealed class Telling : IProgress<StageProgress>
    {
        private readonly Action<StageProgress> tell;

        public Telling(Action<StageProgress> tell)
        {
            this.tell = tell;
        }

        public void Report(StageProgress value)
        {
            tell(value);
        }
    }

    internal sealed class UsageException : Exception
    {
        public UsageException(string message) : base(message) { }
    }

    /// <summary>A command line: operands, flags, and options with a value.</summary>
    internal sealed class Arguments
    {
        private readonly List<string> words;

        public Arguments(IEnumerable<string> words)
        {
            this.words = words.ToList();
        }

        public bool Flag(string name)
        {
            return words.RemoveAll(word => word == name) > 0;
        }

        public string[] Values(string name)
        {
            var values = new List<string>();
            for (int at; (at = words.IndexOf(name)) >= 0;)
            {
                if (at + 1 == words.Count) throw new UsageException($"{name} needs a value");
                values.Add(words[at + 1]);
                words.RemoveRange(at, 2);
            }
            return values.ToArray();
        }

        public T Value<T>(string name, T missing, Func<string, T> read)
        {
            string[] values = Values(name);
            if (values.Length == 0) return missing;
            try
            {
                return read(values[values.Length - 1]);
            }
            catch (FormatException error)
            {
                throw new UsageException($"{name} {Wording.Printable(values[values.Length - 1])}: {error.Message}");
            }
        }

        /// <summary>The words before the first option.</summary>
        public string[] Operands(string name, int minimum, int maximum)
        {
            string[] operands = words.TakeWhile(word => !word.StartsWith("--", StringComparison.Ordinal)).ToArray();
            if (operands.Length < minimum || operands.Length > maximum)
                throw new UsageException($"{name}: expected {(minimum == maximum ? "one" : "at least one")}, "
                                         + $"found {operands.Length}");
            words.RemoveRange(0, operands.Length);
            return operands;
        }

        public GeneratorOptions Options()
        {
            return new GeneratorOptions
            {
                Threads = Value("--threads", 0, Int32),
                Spinning = !Flag("--no-spinning"),
                Ops = Value("--ops", Ops.Auto, Choice),
                OpsLibrary = Value("--ops-library", (string)null, text => text),
            };
        }

        private static Ops Choice(string text)
        {
            switch (text)
            {
                case "auto": return Ops.Auto;
                case "stock": return Ops.Stock;
                case "fused": return Ops.Fused;
                default: throw new FormatException("expected auto, stock or fused");
            }
        }

        public void RequireAllUsed()
        {
            if (words.Count > 0) throw new UsageException($"\"{Wording.Printable(words[0])}\" is not understood");
        }

        public static int Int32(string text)
        {
            int value;
            if (int.TryParse(text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out value))
                return value;
            throw new FormatException("expected an integer of at most 2^31 - 1");
        }

        public static long Int64(string text)
        {
            long value;
            if (long.TryParse(text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out value))
                return value;
            throw new FormatException("expected an integer of at most 2^63 - 1");
        }

        public static ulong UInt64(string text)
        {
            ulong value;
            if (ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out value)) return value;
            throw new FormatException("expected an integer from 0 to 2^64 - 1");
        }

        /// <summary>Null for "random".</summary>
        public static ulong? Seed(string text)
        {
            return text == "random" ? (ulong?)null : UInt64(text);
        }

        public static double Number(string text)
        {
            double value;
            if (double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out value)) return value;
            throw new FormatException("expected a number");
        }
    }
}
