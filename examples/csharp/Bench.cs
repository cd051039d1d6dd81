using System;
using System.Collections.Generic;
using System.Diagnostics;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Text;
using Microsoft.ML.OnnxRuntime;

namespace NextScale
{
    /// <summary>A bundle in one form: "generate" (generate.onnx) or "streaming" (stage.onnx, decoder.onnx).</summary>
    internal sealed class BenchCase : IDisposable
    {
        private static readonly Dictionary<string, string[]> Forms = new Dictionary<string, string[]>
        {
            { "generate", new[] { "generate" } }, { "streaming", new[] { "stage", "decoder" } },
        };

        private readonly Generator generator;
        private readonly string form;
        private readonly string folder;

        public BenchCase(string folder, string form, GeneratorOptions options)
        {
            this.folder = folder;
            this.form = form;
            Stopwatch watch = Stopwatch.StartNew();
            generator = new Generator(folder, options);
            generator.Load(Forms[form]);
            LoadSeconds = watch.Elapsed.TotalSeconds;
        }

        public double LoadSeconds { get; }

        /// <summary>Seconds of each timed batch.</summary>
        public List<double> Seconds { get; } = new List<double>();

        public static string[] ReadForms(Arguments arguments)
        {
            string[] forms = arguments.Values("--form");
            foreach (string form in forms)
                if (!Forms.ContainsKey(form))
                    throw new UsageException($"--form {Wording.Printable(form)}: expected generate or streaming");
            return forms.Length > 0 ? forms : Forms.Keys.ToArray();
        }

        /// <summary>Generate one batch with the default sampling; returns seconds.</summary>
        public double Time(int batch, ulong seed)
        {
            long classes = generator.Bundle.Model.NumClasses;
            long[] labels = Enumerable.Range(0, batch).Select(i => (i + (long)(seed % 1000)) % classes).ToArray();
            var request = new GenerationRequest(labels) { Seed = seed };
            Stopwatch watch = Stopwatch.StartNew();
            generator.Generate(request, form == "streaming" ? new Telling(stage => { }) : null);
            return watch.Elapsed.TotalSeconds;
        }

        public string Report(int batch)
        {
            double mean = Seconds.Average();
            double deviation = Math.Sqrt(Seconds.Sum(s => (s - mean) * (s - mean)) / Math.Max(1, Seconds.Count - 1));
            double error = 2 * deviation / Math.Sqrt(Seconds.Count) / mean;
            return string.Format(
                CultureInfo.InvariantCulture,
                "{0} ({1}, {8} graphs), {2}, batch {3}: {4:g3} images/s, {5:g3} s per image ±{6:p1}, load {7:f2} s",
                folder, generator.Bundle.Recipe, form, batch, batch / mean, mean / batch, error, LoadSeconds,
                generator.Ops.Fused ? "fused" : "stock");
        }

        public void Dispose()
        {
            generator.Dispose();
        }
    }

    /// <summary>How fast bundles are, in turns, so that a drifting machine slows them all alike.</summary>
    internal static class Bench
    {
        public static int Run(Arguments arguments)
        {
            string[] folders = arguments.Operands("BUNDLE", 1, int.MaxValue);
            string[] forms = BenchCase.ReadForms(arguments);
            int batch = Positive("--batch", arguments.Value("--batch", 1, Arguments.Int32));
            int repetitions = Positive("--repetitions", arguments.Value("--repetitions", 10, Arguments.Int32));
            int warmup = arguments.Value("--warmup", 1, Arguments.Int32);
            GeneratorOptions options = arguments.Options();
            arguments.RequireAllUsed();
            var cases = new List<BenchCase>();
            try
            {
                foreach (string folder in folders)
                    foreach (string form in forms) cases.Add(new BenchCase(folder, form, options));
                for (int repetition = -warmup; repetition < repetitions; repetition++)
                {
                    foreach (BenchCase item in cases)
                    {
                        double seconds = item.Time(batch, 0);
                        if (repetition >= 0) item.Seconds.Add(seconds);
                    }
                }
                Console.WriteLine($"threads {(options.Threads == 0 ? "all" : options.Threads.ToString())}, "
                                  + $"{repetitions} interleaved repetitions; ± is two standard errors");
                foreach (BenchCase item in cases) Console.WriteLine(item.Report(batch));
            }
            finally
            {
                foreach (BenchCase item in cases) item.Dispose();
            }
            return 0;
        }

        private static int Positive(string name, int value)
        {
            if (value < 1) throw new UsageException($"{name} {value}: expected at least 1");
            return value;
        }
    }

    /// <summary>Generates what it is asked for on stdin: the protocol of runtime/contender.py, which interleaves this
    /// program with others in one measurement.</summary>
    internal static class BenchWorker
    {
        public static int Run(Arguments arguments)
        {
            string folder = arguments.Operands("BUNDLE", 1, 1)[0];
            string form = BenchCase.ReadForms(arguments)[0];
            GeneratorOptions options = arguments.Options();
            arguments.RequireAllUsed();
            using (var item = new BenchCase(folder, form, options))
            {
                Say("\"ready\": true, \"load_seconds\": {0:f6}, \"versions\": {{\"onnxruntime\": \"{1}\"}}",
                    item.LoadSeconds, OrtEnv.Instance().GetVersionString());
                for (string line; (line = Console.ReadLine()) != null;)
                {
                    var request = new Fields(Json.Parse(Encoding.UTF8.GetBytes(line)), "request", "");
                    double seconds = item.Time((int)request.Integer("batch", 1), (ulong)request.Integer("seed"));
                    Say("\"seconds\": {0:f6}, \"peak_memory_bytes\": {1}", seconds, PeakBytes());
                }
            }
            return 0;
        }

        private static void Say(string fields, params object[] values)
        {
            Console.WriteLine("{" + string.Format(CultureInfo.InvariantCulture, fields, values) + "}");
        }

        private static long PeakBytes()
        {
            const string status = "/proc/self/status";
            string line = File.Exists(status)
                ? File.ReadLines(status).FirstOrDefault(text => text.StartsWith("VmHWM:", StringComparison.Ordinal))
                : null;
            return line == null
                ? Process.GetCurrentProcess().PeakWorkingSet64
                : long.Parse(line.Split((char[])null, StringSplitOptions.RemoveEmptyEntries)[1],
                             CultureInfo.InvariantCulture) * 1024;
        }
    }
}
