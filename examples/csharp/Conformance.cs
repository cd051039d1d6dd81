using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Security.Cryptography;
using System.Threading;
using System.Threading.Tasks;

namespace NextScale
{
    /// <summary>Holds this library to what the Python runtime does: tests/conformance/README.md describes the suite.
    /// </summary>
    internal sealed class Conformance : IDisposable
    {
        private static readonly Dictionary<string, Type> Errors = new Dictionary<string, Type>
        {
            { "NextscaleError", typeof(NextScaleException) }, { "BundleError", typeof(BundleException) },
            { "ClassLabelError", typeof(ClassLabelException) }, { "RequestError", typeof(RequestException) },
            { "Cancelled", typeof(OperationCanceledException) },
        };

        private readonly string folder;
        private readonly Fields suite;
        private readonly Dictionary<string, Generator> generators = new Dictionary<string, Generator>();
        private readonly Pieces pieces = new Pieces();
        private int passed;
        private int failed;

        private Conformance(string folder)
        {
            this.folder = folder;
            string path = Path.Combine(folder, "suite.json");
            if (!File.Exists(path))
                throw new NextScaleException($"{path}: no such file; tests/conformance/README.md tells how to make it");
            suite = new Fields(Json.Parse(File.ReadAllBytes(path)), path, "");
            foreach (Fields item in Cases("tokenizers").Where(item => item.Text("kind") == "sentencepiece"))
            {
                long[] ids = Integers(item.Get("ids"));
                pieces[(string)item.Get("text")] = ids.Take(ids.Length - 1).ToArray();
            }
        }

        /// <returns>0 if every case holds, else 1.</returns>
        public static int Run(string folder)
        {
            using (var conformance = new Conformance(folder))
            {
                conformance.RunAll();
                Console.WriteLine($"{conformance.passed} passed, {conformance.failed} failed");
                return conformance.failed == 0 ? 0 : 1;
            }
        }

        public void Dispose()
        {
            foreach (Generator generator in generators.Values) generator.Dispose();
        }

        private void RunAll()
        {
            Each("philox", (name, item) => Check(name, () =>
            {
                uint[] words = Words(item, "counter"), key = Words(item, "key");
                Uniforms.Philox4x32(words, key[0], key[1]);
                return Same(words, Words(item, "words"));
            }));
            Each("uniforms", (name, item) => Check(name, () =>
            {
                long[] values = Integers(item.Get("values"));
                float[] found = Uniforms.OfImage(
                    Arguments.UInt64(item.Text("seed")), Arguments.UInt64(item.Text("image")), values.Length,
                    (NumberUse)item.Integer("use"));
                return Same(found.Select(number => (double)number * (1 << 24)), values.Select(value => (double)value));
            }));
            Each("tokenizers", RunTokenizer);
            Each("probe_features", (name, item) => Check(name, () => Rows(item.Get("values"), Integers).Select(
                (values, image) => Same(
                    Uniforms.OfImage(0, (ulong)image, values.Length).Select(number => (2 * number - 1) * (1 << 23)),
                    values.Select(value => (float)value))).FirstOrDefault(problem => problem != null)));
            Each("requests", RunRequest);
            Each("request_errors", (name, item) =>
            {
                var neverTold = new Telling(stage => { throw new InvalidOperationException("it has run"); });
                Refused($"{name}, generate", item, () => GeneratorFor(item, 1).Generate(Request(item)));
                Refused($"{name}, streaming", item, () => GeneratorFor(item, 1).Generate(Request(item), neverTold));
            });
            Each("cancellations", RunCancellation);
            Each("encodes", (name, item) =>
            {
                foreach (int threads in Integers(item.Get("threads")))
                    Check($"{name}, {threads} threads", () => Same(
                        Encoded(item, threads).SelectMany(row => row), Integers(item.Get("token_maps"))));
            });
            Each("encode_errors", (name, item) => Refused(name, item, () => Encoded(item, 1)));
            Each("edits", RunRequest);
            Each("edit_errors", (name, item) => Refused(name, item, () =>
            {
                using (var source = new CancellationTokenSource())
                {
                    bool cancelled = (bool)item.Get("cancelled");
                    if (cancelled) source.Cancel();
                    Made(item, 1, null, cancelled ? source.Token : CancellationToken.None);
                }
            }));
            Each("boxes", (name, item) =>
            {
                double[] ends = Flat(item.Get("ends")).Select(Number).ToArray();
                Func<bool[,]> box = () => Mask.Box(
                    Bundle.Open(Folder(item)).Model, ends[0], ends[1], ends[2], ends[3], (bool)item.Get("outside"));
                if (item.Value.ContainsKey("error")) Refused(name, item, () => box());
                else Check(name, () => Same(Digits(box().Cast<bool>()), Digits(MaskOf(item, "mask").Cast<bool>())));
            });
            Each("kept_tokens", RunKeptTokens);
            Each("blends", RunBlend);
            Each("class_names", RunClassName);
            Each("threads_errors", (name, item) => Refused(name, item, () => new Generator(
                Folder(item), new GeneratorOptions { Threads = (int)item.Integer("threads", long.MinValue) })));
            Each("default_threads", (name, item) => Check(name, () =>
            {
                string root = Path.Combine(folder, item.Text("root"));
                int found = Cpus.DefaultThreads(root);
                long cpus = Cpus.LogicalCpus(root);
                return found == item.Integer("threads", 0)
                    && (!item.Value.ContainsKey("cpus") || cpus == item.Integer("cpus", 1))
                    ? null
                    : $"{found} threads, {cpus} CPUs";
            }));
            Each("broken_bundles", RunBrokenBundle);
            Each("damaged_manifests", (name, item) =>
            {
                byte[] content = File.ReadAllBytes(Path.Combine(folder, item.Text("file")));
                if (item.Get("error") == null) Check(name, () => Use(Manifest.Parse(content, name)));
                else Refused(name, item, () => Manifest.Parse(content, name));
            });
            Each("variants", RunVariant);
            RunTexts();
            RunTogether();
            RunChanges();
            RunDisposal();
        }

        private void RunRequest(string name, Fields item)
        {
            Fields expected = item.Object("expected");
            long[][] tokenMaps = Rows(expected.Get("token_maps"), Integers);
            string[] images = Texts(expected, "images_sha256"), previews = Texts(expected, "previews_sha256");
            foreach (int threads in Integers(item.Get("threads")))
            {
                Check($"{name}, {threads} threads, generate", () =>
                {
                    return Same(Made(item, threads, null, CancellationToken.None), tokenMaps, images);
                });
                Check($"{name}, {threads} threads, streaming", () =>
                {
                    var seen = new List<string>();
                    Generation made = Made(
                        item, threads, new Telling(stage => seen.Add(Sha256(stage.Preview()))), CancellationToken.None);
                    return Same(made, tokenMaps, images) ?? Same(seen, previews);
                });
            }
        }

        /// <summary>What a request, or an edit, gives.</summary>
        private Generation Made(
            Fields item, int threads, IProgress<StageProgress> progress, CancellationToken cancellation)
        {
            Generator generator = GeneratorFor(item, threads);
            if (!item.Value.ContainsKey("picture")) return generator.Generate(Request(item), progress, cancellation);
            return generator.Edit(
                Pictures(item.Text("picture"), 1, item)[0], MaskOf(item, "mask"), Request(item),
                (int)item.Integer("keep_stages", int.MinValue),
                item.Get("feather") == null ? (int?)null : (int)item.Integer("feather", int.MinValue),
                progress, cancellation, ToldSize(generator, item));
        }

        /// <summary>ByT5's ids, and those of an application's tokenizer, of whose use this is a test.</summary>
        private void RunTokenizer(string name, Fields item)
        {
            var info = new TokenizerInfo { Kind = item.Text("kind"), MaxTokens = item.Integer("max_tokens") };
            if (info.Kind != "bytes") info.File = item.Text("file");
            Func<long[]> ids = () => Tokens.Of(info, pieces, (string)item.Get("text"));
            if (item.Value.ContainsKey("error")) Refused(name, item, () => ids());
            else Check(name, () => Same(ids(), Integers(item.Get("ids"))));
        }

        /// <summary>What the suite's cases cannot say: text that is no Unicode, and tokenizers of the application.
        /// </summary>
        private void RunTexts()
        {
            const string Half = " is half of one (a lone surrogate); expected valid Unicode";
            Refused("half a character", () => Tokens.OfBytes("\ud83d\ude00a\ude00", 9),
                    "prompt \"\ud83d\ude00a\\ude00\": character 2" + Half);
            Refused("half a character at the end", () => Tokens.OfBytes("\n\ud83d", 9),
                    "prompt \"\\n\\ud83d\": character 1" + Half);
            var info = new TokenizerInfo { Kind = "sentencepiece", File = "spiece.model", MaxTokens = 3 };
            Refused("half a character for a tokenizer", () => Tokens.Of(info, pieces, "\ud83d"),
                    "prompt \"\\ud83d\": character 0" + Half);
            Refused("no tokenizer", () => Tokens.Of(info, null, "x"), "set GeneratorOptions.Tokenizer");
            Refused("a tokenizer of too many ids", () => Tokens.Of(info, new Pieces { { "x", new long[3] } }, "x"),
                    "prompt \"x\" has 4 tokens, its end among them; expected at most 3: shorten it");
            Refused("a tokenizer of no ids", () => Tokens.Of(info, new Pieces { { " ", new long[0] } }, " "),
                    "prompt \" \" is empty: expected a description in words");
            info.File = null;
            info.Kind = "words";
            foreach (Fields item in Cases("encodes").Where(item => GeneratorFor(item, 1).Bundle.Sizes.Count > 0))
            {
                const string Untold = "size: this bundle is built for several; give height and width of the picture";
                Refused("pictures of no size", () => GeneratorFor(item, 1).Encode(Pictures(item)), Untold);
                Refused("an edit of no size", () => GeneratorFor(item, 1).Edit(Pictures(item)[0]), Untold);
            }
            Refused("a tokenizer of another kind", () => Tokens.Of(info, pieces, "x"),
                    "a tokenizer of kind \"words\", which this NextScale.cs does not know");
        }

        private void Refused(string name, Action run, string message)
        {
            Check(name, () =>
            {
                try
                {
                    run();
                }
                catch (RequestException error)
                {
                    return error.Message.Contains(message) ? null : error.Message;
                }
                return "not refused";
            });
        }

        /// <summary>A tokenizer that knows the ids of some prompts.</summary>
        private sealed class Pieces : Dictionary<string, long[]>, ITokenizer
        {
            public IReadOnlyList<long> Encode(string prompt)
            {
                return this[prompt];
            }
        }

        /// <summary>The token maps of a case's pictures.</summary>
        private long[][] Encoded(Fields item, int threads)
        {
            Generator generator = GeneratorFor(item, threads);
            HeightWidth? size = ToldSize(generator, item);
            return size == null ? generator.Encode(Pictures(item)) : generator.Encode(size.Value, Pictures(item));
        }

        /// <summary>The size of a case's pictures, where a bundle of several has to be told.</summary>
        private static HeightWidth? ToldSize(Generator generator, Fields item)
        {
            return generator.Bundle.Sizes.Count == 0 ? (HeightWidth?)null : Size(item.Get("size"));
        }

        private void RunKeptTokens(string name, Fields item)
        {
            bool[,] mask = MaskOf(item, "mask");
            HeightWidth latent = Size(item.Get("latent"));
            if (item.Value.ContainsKey("error"))
            {
                Refused(name, item, () => Mask.Latent(mask, latent));
                return;
            }
            Check(name, () =>
            {
                bool[,] positions = Mask.Latent(mask, latent);
                bool[] kept = Mask.KeptTokens(positions, List(item.Get("stages")).Select(Size).ToList());
                return Same(Digits(positions.Cast<bool>()), Digits(MaskOf(item, "positions").Cast<bool>()))
                    ?? Same(Digits(kept), item.Text("kept"));
            });
        }

        private void RunBlend(string name, Fields item)
        {
            bool[,] mask = MaskOf(item, "mask");
            byte[][] images = Pictures(item.Text("seed"), 3, mask.GetLength(0), mask.GetLength(1));
            byte[][] made = images.Skip(1).ToArray();
            Mask.Blend(images[0], made, mask, (int)item.Integer("feather"));
            Check(name, () => Same(
                made.Select(image => Sha256(new[] { image })), Texts(item, "images_sha256")));
        }

        /// <summary>Pictures of a seed: byte t of picture i is 256 times uniform t of image i, rounded down.</summary>
        private static byte[][] Pictures(string seed, int count, long height, long width)
        {
            return Enumerable.Range(0, count).Select(
                i => Uniforms.OfImage(Arguments.UInt64(seed), (ulong)i, (int)(height * width * 3))
                    .Select(number => (byte)(number * 256)).ToArray()).ToArray();
        }

        private static byte[][] Pictures(string seed, int count, Fields item)
        {
            HeightWidth size = Size(item.Get("size"));
            return Pictures(seed, count, size.Height, size.Width);
        }

        private static byte[][] Pictures(Fields item)
        {
            return Pictures(item.Text("seed"), (int)item.Integer("count"), item);
        }

        private static HeightWidth Size(object value)
        {
            long[] sides = Integers(value);
            return new HeightWidth(sides[0], sides[1]);
        }

        /// <summary>Null, or rows of 0 and 1.</summary>
        private static bool[,] MaskOf(Fields item, string key)
        {
            if (item.Get(key) == null) return null;
            string[] rows = Texts(item, key);
            var mask = new bool[rows.Length, rows[0].Length];
            for (int y = 0; y < rows.Length; y++)
                for (int x = 0; x < rows[y].Length; x++) mask[y, x] = rows[y][x] == '1';
            return mask;
        }

        private static string Digits(IEnumerable<bool> values)
        {
            return string.Concat(values.Select(value => value ? "1" : "0"));
        }

        private void RunCancellation(string name, Fields item)
        {
            long callbacks = item.Integer("callbacks");
            int calls = 0;
            Refused(name, item, () =>
            {
                using (var source = new CancellationTokenSource())
                {
                    if (callbacks == 0) source.Cancel();
                    GeneratorFor(item, 1).Generate(Request(item), new Telling(stage =>
                    {
                        if (++calls == callbacks) source.Cancel();
                    }), source.Token);
                }
            });
            Check($"{name}, callbacks", () => calls == callbacks ? null : $"{calls} callbacks, expected {callbacks}");
        }

        private void RunClassName(string name, Fields item)
        {
            Bundle bundle = Bundle.Open(Folder(item));
            string text = item.Text("text");
            if (!item.Value.ContainsKey("label")) Refused(name, item, () => bundle.ClassLabel(text));
            else Check(name, () => Same(new[] { bundle.ClassLabel(text) }, new[] { item.Integer("label") }));
        }

        private void RunBrokenBundle(string name, Fields item)
        {
            string step = item.Text("step");
            Bundle bundle = null;
            Action open = () => bundle = Bundle.Open(Folder(item));
            Action hashes = () => bundle.VerifyHashes();
            Action load = () =>
            {
                using (var generator = new Generator(bundle)) generator.Load(Texts(item, "graphs"));
            };
            Action[] steps = { open, hashes, load };
            int last = Array.IndexOf(new[] { "open", "verify_hashes", "load" }, step);
            Check($"{name}, steps before", () =>
            {
                foreach (Action before in steps.Take(last)) before();
                return null;
            });
            Refused(name, item, steps[last]);
        }

        /// <summary>All requests of the first bundle at the same time, from several threads.</summary>
        private void RunTogether()
        {
            List<Fields> items = Cases("requests").Where(
                item => item.Text("bundle") == Cases("requests")[0].Text("bundle")).ToList();
            Check("requests from several threads", () =>
            {
                Generator generator = GeneratorFor(items[0], 1);
                var tasks = Enumerable.Range(0, 4 * items.Count).Select(i => new
                {
                    expected = Rows(items[i % items.Count].Object("expected").Get("token_maps"), Integers),
                    made = generator.GenerateAsync(
                        Request(items[i % items.Count]), i % 2 == 0 ? null : new Telling(stage => { })),
                }).ToList();
                return tasks.Select(task => Same(
                    task.made.Result.TokenMaps.SelectMany(row => row), task.expected.SelectMany(row => row)))
                    .FirstOrDefault(difference => difference != null);
            });
            Check("prompts from several threads, the text encoder being closed", () =>
            {
                List<Fields> prompts = Cases("requests").Where(item => item.Optional("prompts") != null).ToList();
                if (prompts.Count == 0) return null;
                prompts = prompts.Where(item => item.Text("bundle") == prompts[0].Text("bundle")).ToList();
                using (var shared = new Generator(Folder(prompts[0]), new GeneratorOptions { KeepTextEncoder = false }))
                {
                    var tasks = Enumerable.Range(0, 4 * prompts.Count).Select(i => new
                    {
                        expected = Rows(prompts[i % prompts.Count].Object("expected").Get("token_maps"), Integers),
                        made = shared.GenerateAsync(Request(prompts[i % prompts.Count])),
                    }).ToList();
                    return tasks.Select(task => Same(
                        task.made.Result.TokenMaps.SelectMany(row => row), task.expected.SelectMany(row => row)))
                        .FirstOrDefault(difference => difference != null);
                }
            });
            Check("memory returned", () =>
            {
                using (var returning = new Generator(Folder(items[0]), new GeneratorOptions { ReturnMemory = true }))
                    return Same(
                        returning.Generate(Request(items[0])).TokenMaps.SelectMany(row => row),
                        Rows(items[0].Object("expected").Get("token_maps"), Integers).SelectMany(row => row));
            });
        }

        /// <summary>A request that is changed while it runs, on another thread or inside a call, changes nothing.
        /// </summary>
        private void RunChanges()
        {
            Fields item = Cases("requests")[0];
            Check("a request that is changed while it runs", () =>
            {
                long[] expected = Rows(item.Object("expected").Get("token_maps"), Integers)
                    .SelectMany(row => row).ToArray();
                Generator generator = GeneratorFor(item, 1);
                long[] labels = Integers(item.Get("class_labels")), others = labels.Select(label => 4L).ToArray();
                GenerationRequest request = Request(item, labels);
                Task<Generation> task = generator.GenerateAsync(request);
                others.CopyTo(labels, 0);
                request.Seed++;
                string problem = Same(task.Result.TokenMaps.SelectMany(row => row), expected);
                labels = Integers(item.Get("class_labels"));
                Generation made = generator.Generate(
                    Request(item, labels), new Telling(stage => others.CopyTo(labels, 0)));
                return problem ?? Same(made.TokenMaps.SelectMany(row => row), expected);
            });
        }

        /// <summary>Generate with a manifest that damage left acceptable, on the files of the first bundle: that works,
        /// or is refused by a documented exception.</summary>
        private string Use(Manifest manifest)
        {
            try
            {
                using (var generator = new Generator(new Bundle(Folder(Cases("requests")[0]), manifest)))
                {
                    generator.Generate(new GenerationRequest(0));
                    generator.Generate(new GenerationRequest(0), new Telling(stage => stage.Preview()));
                }
            }
            catch (NextScaleException error)
            {
                return Wording.IsPrintable(error.Message) ? null : $"not one line: {error.Message}";
            }
            return null;
        }

        /// <summary>What a caller may do around the end of a generator's life.</summary>
        private void RunDisposal()
        {
            Fields item = Cases("requests")[0];
            Check("a preview after its call and a disposal inside a call", () =>
            {
                var stages = new List<StageProgress>();
                var generator = new Generator(Folder(item));
                generator.Generate(Request(item), new Telling(stages.Add));
                string problem = Same(
                    stages.Select(stage => Sha256(stage.Preview())), Texts(item.Object("expected"), "previews_sha256"));
                Generation made = generator.Generate(Request(item), new Telling(stage => generator.Dispose()));
                return problem ?? Same(made.Images.Select(image => Sha256(new[] { image })),
                                       Texts(item.Object("expected"), "images_sha256"));
            });
            Check("a disposed generator refuses", () =>
            {
                var generator = new Generator(Folder(item));
                generator.Dispose();
                try
                {
                    generator.Generate(Request(item));
                }
                catch (ObjectDisposedException)
                {
                    return null;
                }
                return "not refused";
            });
            Check("a cancelled task", () =>
            {
                using (var generator = new Generator(Folder(item)))
                using (var source = new CancellationTokenSource())
                {
                    bool cancelled = generator
                        .GenerateAsync(Request(item), new Telling(stage => source.Cancel()), source.Token)
                        .ContinueWith(task => task.IsCanceled).Result;
                    return cancelled ? null : "the task was not cancelled";
                }
            });
        }

        private void Each(string group, Action<string, Fields> run)
        {
            int number = 0;
            foreach (Fields item in Cases(group))
            {
                object label = item.Value.ContainsKey("name") ? item.Get("name") : number;
                string bundle = item.Value.ContainsKey("bundle") ? item.Text("bundle") + ", " : "";
                run($"{group}: {bundle}{label}", item);
                number++;
            }
        }

        private List<Fields> Cases(string group)
        {
            if (!suite.Value.ContainsKey(group)) return new List<Fields>();  // another family's
            return suite.Items(group, (owner, key, value) => owner.Nested(key, value)).ToList();
        }

        /// <summary>Run a case that says what is wrong, or null.</summary>
        private void Check(string name, Func<string> run)
        {
            string problem;
            try
            {
                problem = run();
            }
            catch (Exception error)
            {
                problem = error.ToString();
            }
            if (problem == null)
            {
                passed++;
                return;
            }
            failed++;
            Console.WriteLine($"FAILED {name}: {problem}");
        }

        /// <summary>Run what must end in the case's error, by exactly its type.</summary>
        private void Refused(string name, Fields item, Action run)
        {
            string kind = item.Text("error");
            string[] contains = item.Value.ContainsKey("contains") ? Texts(item, "contains") : new string[0];
            Check(name, () =>
            {
                try
                {
                    run();
                }
                catch (Exception error) when (error.GetType() == Errors[kind])
                {
                    string missing = contains.FirstOrDefault(text => !error.Message.Contains(text));
                    if (missing != null) return $"\"{missing}\" is not in: {error.Message}";
                    return Wording.IsPrintable(error.Message) ? null : $"not one line: {error.Message}";
                }
                return $"not refused; expected {kind}";
            });
        }

        private void RunVariant(string name, Fields item)
        {
            if (item.Value.ContainsKey("error"))
            {
                Refused(name, item, () => new Generator(Folder(item), GraphOptions(item)));
                return;
            }
            Check(name, () =>
            {
                using (var generator = new Generator(Folder(item), GraphOptions(item)))
                    return Same(new[] { generator.Ops.Fused ? "fused" : "stock" }, new[] { item.Text("variant") })
                        ?? (generator.Ops.Reason.Contains(item.Text("reason")) ? null : generator.Ops.Reason);
            });
        }

        private Generator GeneratorFor(Fields item, int threads)
        {
            GeneratorOptions options = item.Value.ContainsKey("ops") ? GraphOptions(item) : new GeneratorOptions();
            options.Threads = threads;
            options.Tokenizer = pieces;
            string key = $"{threads} {options.Ops} {Folder(item)}";
            if (!generators.ContainsKey(key)) generators[key] = new Generator(Folder(item), options);
            return generators[key];
        }

        /// <summary>The choice of a case's graphs, and the library that it names.</summary>
        private GeneratorOptions GraphOptions(Fields item)
        {
            return new GeneratorOptions
            {
                Ops = (Ops)Enum.Parse(typeof(Ops), item.Text("ops"), true),
                OpsLibrary = item.Get("ops_library") == null ? null : Path.Combine(folder, item.Text("ops_library")),
            };
        }

        private string Folder(Fields item)
        {
            return Path.Combine(folder, item.Text("bundle"));
        }

        private static GenerationRequest Request(Fields item)
        {
            return Request(item, Integers(item.Get("class_labels")));
        }

        private static GenerationRequest Request(Fields item, long[] labels)
        {
            var request = new GenerationRequest(labels)
            {
                Seed = Arguments.UInt64(item.Text("seed")),
                FirstImage = Arguments.UInt64(item.Text("first_image")),
                CfgScale = Scalar(item.Get("cfg_scale")),
                TopK = Scalar(item.Get("top_k")),
                TopP = Scalar(item.Get("top_p")),
                ForcedTokens = Rows(item.Get("forced_tokens"), Integers),
                Uniforms = Rows(item.Get("uniforms"), row => Flat(row).Select(value => (float)Number(value)).ToArray()),
                MoreSmooth = (bool)item.Get("more_smooth"),
                BatchSize = item.Get("batch_size") == null ? (int?)null : (int)item.Integer("batch_size"),
            };
            Fields inputs = item.Object("inputs");
            foreach (string name in inputs.Value.Keys)
            {
                if (!(inputs.Get(name) is Dictionary<string, object>)) request.Scalars[name] = Scalar(inputs.Get(name));
                else if (!inputs.Object(name).Value.ContainsKey("texts"))
                    request.Inputs[name] = Tensor(inputs.Object(name).Text("dtype"), inputs.Object(name).Get("values"));
                else
                    request.Texts[name] =
                        List(inputs.Object(name).Get("texts")).Select(text => Tensor("float32", text)).ToArray();
            }
            ReadTexts(request, item);
            return request;
        }

        /// <summary>What a request of the family of text says further.</summary>
        private static void ReadTexts(GenerationRequest request, Fields item)
        {
            object prompts = item.Optional("prompts"), negative = item.Optional("negative");
            request.Prompts = Rows(prompts, text => (string)text);
            request.Negative = negative is string ? (Negative)(string)negative
                : negative == null ? null : new Negative(Rows(negative, text => (string)text));
            request.Area = (string)item.Optional("area");
            request.Ratio = (string)item.Optional("ratio");
            request.Tau = Scalar(item.Optional("tau"));
        }

        /// <summary>Null, a number or a list.</summary>
        private static Scalar Scalar(object value)
        {
            return value == null ? null : new Scalar(Flat(value).Select(Number).ToArray());
        }

        /// <summary>A tensor of the suite, whose values are nested lists.</summary>
        private static InputTensor Tensor(string dtype, object numbers)
        {
            var shape = new List<long>();
            object part = numbers;
            while (part is List<object>)
            {
                shape.Add(List(part).Count);
                part = List(part).FirstOrDefault();
            }
            double[] values = Flat(numbers).Select(Number).ToArray();
            return dtype == "float32"
                ? new InputTensor(values.Select(value => (float)value).ToArray(), shape.ToArray())
                : new InputTensor(values.Select(value => (long)value).ToArray(), shape.ToArray());
        }

        /// <summary>All values within lists of lists.</summary>
        private static IEnumerable<object> Flat(object value)
        {
            return value is List<object> ? List(value).SelectMany(Flat) : new[] { value };
        }

        private static double Number(object value)
        {
            var number = value as JsonNumber;
            return number != null ? number.AsDouble()
                : (string)value == "inf" ? double.PositiveInfinity : double.NaN;
        }

        private static uint[] Words(Fields item, string key)
        {
            return Texts(item, key).Select(
                word => uint.Parse(word, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture)).ToArray();
        }

        private static string[] Texts(Fields item, string key)
        {
            return item.Items(key, (owner, place, value) => (string)value).ToArray();
        }

        private static List<object> List(object value)
        {
            return (List<object>)value;
        }

        private static long[] Integers(object value)
        {
            return Flat(value).Select(item => Arguments.Int64(item.ToString())).ToArray();
        }

        private static T[] Rows<T>(object value, Func<object, T> read)
        {
            return value == null ? null : List(value).Select(read).ToArray();
        }

        private static string Same<T>(IEnumerable<T> found, IEnumerable<T> expected)
        {
            return found.SequenceEqual(expected)
                ? null
                : $"found {string.Join(" ", found.Take(40))}, expected {string.Join(" ", expected.Take(40))}";
        }

        private static string Same(Generation made, long[][] tokenMaps, string[] images)
        {
            return Same(made.TokenMaps.SelectMany(row => row), tokenMaps.SelectMany(row => row))
                ?? Same(made.Images.Select(image => Sha256(new[] { image })), images);
        }

        private static string Sha256(byte[][] images)
        {
            using (SHA256 sha256 = SHA256.Create())
                return BitConverter.ToString(sha256.ComputeHash(images.SelectMany(image => image).ToArray()))
                    .Replace("-", "").ToLowerInvariant();
        }
    }
}
