// Pictures from a nextscale bundle, with ONNX Runtime (NuGet: Microsoft.ML.OnnxRuntime 1.22 or later).
//
//     using (var generator = new Generator("path/to/bundle"))
//     {
//         Generation result = generator.Generate(new GenerationRequest(207) { Seed = 0 });
//         byte[] rgb = result.Images[0];  // result.ImageSize squared, 3 bytes a pixel
//     }
//
// This file needs no other. C# 7.3, so that it compiles for .NET, .NET Framework, Unity and mono alike.
// The contract that it follows is docs/bundle.md; the same request gives the same tokens and bytes as in Python.

using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Security.Cryptography;
using System.Text;
using System.Text.RegularExpressions;
using System.Threading;
using System.Threading.Tasks;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;
#if NETCOREAPP
using System.Text.Json;
#endif

namespace NextScale
{
    /// <summary>An expected failure, with one clear line: what is wrong, where, what was expected, what to do.
    /// Cancelling raises OperationCanceledException instead.</summary>
    public class NextScaleException : Exception
    {
        public NextScaleException(string message, Exception inner = null) : base(message, inner) { }
    }

    /// <summary>A bundle that is missing, damaged, newer than this file, or not what its manifest says.</summary>
    public sealed class BundleException : NextScaleException
    {
        public BundleException(string message, Exception inner = null) : base(message, inner) { }
    }

    /// <summary>A class that the bundle's model does not have.</summary>
    public sealed class ClassLabelException : NextScaleException
    {
        public ClassLabelException(string message) : base(message) { }
    }

    /// <summary>A generation parameter outside its range.</summary>
    public sealed class RequestException : NextScaleException
    {
        public RequestException(string message) : base(message) { }
    }

    /// <summary>How the sessions of a bundle use the machine.</summary>
    public sealed class GeneratorOptions
    {
        /// <summary>Threads of one operator, to 1024; 0 takes one for each physical core.</summary>
        public int Threads { get; set; }

        /// <summary>Idle threads spin for a moment before they sleep: faster alone, slower on a busy machine.</summary>
        public bool Spinning { get; set; } = true;

        /// <summary>Keep freed memory for the next operator; without it a picture takes a quarter longer.</summary>
        public bool MemoryArena { get; set; } = true;

        /// <summary>Plan one block of memory for each set of shapes; costs memory, gains no time here.</summary>
        public bool MemoryPattern { get; set; }
    }

    /// <summary>What to generate: one image for each class label.</summary>
    public sealed class GenerationRequest
    {
        public const double DefaultCfgScale = 4.0;
        public const int DefaultTopK = 900;
        public const double DefaultTopP = 0.96;

        /// <param name="classLabels">Ids, as Bundle.ClassLabel gives for a name; num_classes is the null class.</param>
        public GenerationRequest(params long[] classLabels)
        {
            ClassLabels = classLabels;
        }

        /// <summary>[B], each 0 to num_classes.</summary>
        public IReadOnlyList<long> ClassLabels { get; }

        /// <summary>The same seed gives the same pictures.</summary>
        public ulong Seed { get; set; }

        /// <summary>Image i of the result is image FirstImage + i of the seed, whatever the batch.</summary>
        public ulong FirstImage { get; set; }

        /// <summary>Guidance strength, at least 0; 0 is none.</summary>
        public double CfgScale { get; set; } = DefaultCfgScale;

        /// <summary>Keep the k likeliest tokens, 0 (off) to V; null is 900, or V if smaller. 1 is greedy.</summary>
        public long? TopK { get; set; }

        /// <summary>Keep the likeliest tokens of this probability mass, 0 (off) to 1.</summary>
        public double TopP { get; set; } = DefaultTopP;

        /// <summary>[B][L], codebook entries to take instead of sampling, -1 to sample; null samples all.</summary>
        public long[][] ForcedTokens { get; set; }

        /// <summary>[B][L], numbers in [0, 1) instead of those of Seed and FirstImage.</summary>
        public float[][] Uniforms { get; set; }

        /// <summary>Images at a time; null is all at once.</summary>
        public int? BatchSize { get; set; }
    }

    /// <summary>Generated images.</summary>
    public sealed class Generation
    {
        internal Generation(byte[][] images, long[][] tokenMaps, ModelInfo model)
        {
            Images = images;
            TokenMaps = tokenMaps;
            ImageSize = (int)model.ImageSize;
        }

        /// <summary>H = W, in pixels.</summary>
        public int ImageSize { get; }

        /// <summary>[B], each H * W * 3 bytes: rows from the top, RGB.</summary>
        public byte[][] Images { get; }

        /// <summary>[B][L], stages in order, row-major; a request's ForcedTokens are of the same form.</summary>
        public long[][] TokenMaps { get; }
    }

    /// <summary>One finished stage of a batch.</summary>
    public sealed class StageProgress
    {
        private readonly Generator generator;
        private readonly float[] latent;

        internal StageProgress(Generator generator, int stage, int first, long[][] tokens, float[] latent)
        {
            this.generator = generator;
            this.latent = latent;
            Stage = stage;
            First = first;
            Tokens = tokens;
        }

        /// <summary>Index of the stage, from 0.</summary>
        public int Stage { get; }

        /// <summary>Stages of an image.</summary>
        public int NumStages { get { return generator.Bundle.Model.NumStages; } }

        /// <summary>Position of the batch's first image in the request.</summary>
        public int First { get; }

        /// <summary>[B][pn * pn], the tokens taken at this stage.</summary>
        public long[][] Tokens { get; }

        /// <summary>Decode the pictures as they are after this stage, as in Generation.Images. May be called at any
        /// time and on any thread until the generator is disposed; costs one run of the decoder.</summary>
        public byte[][] Preview()
        {
            return generator.Decode(latent, Tokens.Length);
        }
    }

    /// <summary>Generates pictures from a bundle. Graphs are loaded when first needed. One generator serves several
    /// threads at the same time: a call keeps its state to itself.</summary>
    public sealed class Generator : IDisposable
    {
        private static readonly string[] GenerateOutputs = { "images", "token_maps" };
        private static readonly string[] DecoderOutputs = { "images" };

        private readonly GeneratorOptions options;
        private readonly Dictionary<string, InferenceSession> sessions = new Dictionary<string, InferenceSession>();
        private readonly object loading = new object();
        private readonly object counting = new object();
        private int running;
        private bool disposed;

        /// <param name="folder">A bundle made by `nextscale build`.</param>
        /// <param name="options">Threads and memory; null takes the defaults.</param>
        /// <exception cref="BundleException">The folder holds no usable bundle.</exception>
        /// <exception cref="NextScaleException">An option is out of range.</exception>
        public Generator(string folder, GeneratorOptions options = null) : this(Bundle.Open(folder), options) { }

        public Generator(Bundle bundle, GeneratorOptions options = null)
        {
            Bundle = bundle;
            this.options = options ?? new GeneratorOptions();
            if (this.options.Threads < 0 || this.options.Threads > 1024)
                throw new NextScaleException(
                    $"threads {this.options.Threads} is out of range: expected 1 to 1024, or 0 for all cores");
        }

        public Bundle Bundle { get; }

        /// <summary>Load "generate", or "stage" and "decoder", now instead of at the first use.</summary>
        /// <exception cref="BundleException">ONNX Runtime cannot load a graph, or it is not the manifest's.</exception>
        /// <exception cref="NextScaleException">ONNX Runtime is missing or too old.</exception>
        public void Load(params string[] graphs)
        {
            Using(() =>
            {
                foreach (string graph in graphs) Session(graph);
                return true;
            });
        }

        /// <summary>Generate one image for each class label of the request.
        ///
        /// One call of generate.onnx a batch; with a progress or a token that can be cancelled, one call of stage.onnx
        /// a stage, which gives the same tokens.</summary>
        /// <param name="progress">Told after each stage. Progress&lt;T&gt; hands this on to another thread.</param>
        /// <param name="cancellation">Looked at before the first and after each stage.</param>
        /// <exception cref="ClassLabelException">A label that the model does not have; nothing was run.</exception>
        /// <exception cref="RequestException">A parameter is out of range; nothing was run.</exception>
        /// <exception cref="BundleException">A graph cannot be loaded.</exception>
        /// <exception cref="NextScaleException">ONNX Runtime failed.</exception>
        /// <exception cref="OperationCanceledException">The token was cancelled.</exception>
        public Generation Generate(
            GenerationRequest request,
            IProgress<StageProgress> progress = null,
            CancellationToken cancellation = default(CancellationToken))
        {
            ModelInputs all = ModelInputs.Create(Bundle, request);
            int step = request.BatchSize ?? all.Count;
            bool streaming = progress != null || cancellation.CanBeCanceled;
            return Using(() =>
            {
                var images = new List<byte[]>();
                var tokenMaps = new List<long[]>();
                for (int first = 0; first < all.Count; first += step)
                {
                    ModelInputs part = all.Images(first, Math.Min(step, all.Count - first));
                    Generation made = streaming
                        ? GenerateStaged(part, first, progress, cancellation)
                        : GenerateAtOnce(part);
                    images.AddRange(made.Images);
                    tokenMaps.AddRange(made.TokenMaps);
                }
                return new Generation(images.ToArray(), tokenMaps.ToArray(), Bundle.Model);
            });
        }

        /// <summary>Generate on another thread; see Generate.</summary>
        public Task<Generation> GenerateAsync(
            GenerationRequest request,
            IProgress<StageProgress> progress = null,
            CancellationToken cancellation = default(CancellationToken))
        {
            return Task.Run(() => Generate(request, progress, cancellation), cancellation);
        }

        /// <summary>Free the graphs; calls that are running come to their end first.</summary>
        public void Dispose()
        {
            lock (counting)
            {
                disposed = true;
                if (running > 0) return;
            }
            Release();
        }

        /// <summary>Decode a latent, float32 [B, Cvae, h, w].</summary>
        internal byte[][] Decode(float[] latent, int count)
        {
            return Using(() =>
            {
                Session("decoder");
                long side = Bundle.Model.LatentSize;
                long[] shape = { count, Bundle.Model.LatentChannels, side, side };
                using (OrtValue value = OrtValue.CreateTensorValueFromMemory(latent, shape))
                    return Decode(value, count);
            });
        }

        private byte[][] Decode(OrtValue latent, int count)
        {
            return Run("decoder", new Dictionary<string, OrtValue> { { "f_hat", latent } }, DecoderOutputs,
                       outputs => Bytes(outputs[0], count, Bundle.Model.ImageBytes));
        }

        private Generation GenerateAtOnce(ModelInputs inputs)
        {
            Session("generate");
            using (var feeds = new Feeds(inputs))
            {
                return Run("generate", feeds.Values, GenerateOutputs, outputs => new Generation(
                    Bytes(outputs[0], inputs.Count, Bundle.Model.ImageBytes),
                    Integers(outputs[1], inputs.Count, Bundle.Model.NumTokens), Bundle.Model));
            }
        }

        /// <summary>Run the stages; the state stays in ONNX Runtime's tensors, each stage's outputs being the next
        /// one's inputs.</summary>
        private Generation GenerateStaged(
            ModelInputs inputs, int first, IProgress<StageProgress> progress, CancellationToken cancellation)
        {
            ModelInfo model = Bundle.Model;
            IReadOnlyList<StateInfo> state = Bundle.Graphs["stage"].State;
            int latentAt = 1 + state.ToList().FindIndex(item => item.Input == "f_hat");
            string[] names = new[] { "tokens" }.Concat(state.Select(item => item.Output)).ToArray();
            long[][] tokenMaps = Enumerable.Range(0, inputs.Count).Select(_ => new long[model.NumTokens]).ToArray();
            var stageIndex = new long[1];
            IDisposableReadOnlyCollection<OrtValue> current = null;
            ThrowIfCancelled(cancellation, 0);
            Session("stage");
            using (var feeds = new Feeds(inputs))
            {
                try
                {
                    feeds.Add("stage", stageIndex);
                    foreach (StateInfo item in state) feeds.AddZeros(item);
                    int begin = 0;
                    for (int stage = 0; stage < model.NumStages; stage++)
                    {
                        stageIndex[0] = stage;
                        IDisposableReadOnlyCollection<OrtValue> next = Run("stage", feeds.Values, names);
                        current?.Dispose();
                        current = next;
                        for (int i = 0; i < state.Count; i++) feeds.Values[state[i].Input] = current.ElementAt(i + 1);
                        int length = model.PatchNums[stage] * model.PatchNums[stage];
                        long[][] tokens = Integers(current.First(), inputs.Count, length);
                        for (int i = 0; i < inputs.Count; i++) tokens[i].CopyTo(tokenMaps[i], begin);
                        begin += length;
                        if (progress != null)
                        {
                            float[] latent = Floats(current.ElementAt(latentAt), model.LatentLength(inputs.Count));
                            progress.Report(new StageProgress(this, stage, first, tokens, latent));
                        }
                        ThrowIfCancelled(cancellation, stage + 1);
                    }
                    return new Generation(Decode(current.ElementAt(latentAt), inputs.Count), tokenMaps, model);
                }
                finally
                {
                    current?.Dispose();
                }
            }
        }

        private void ThrowIfCancelled(CancellationToken cancellation, int done)
        {
            if (cancellation.IsCancellationRequested)
                throw new OperationCanceledException(
                    $"cancelled after {done} of {Bundle.Model.NumStages} stages", cancellation);
        }

        private T Run<T>(
            string graph,
            IReadOnlyDictionary<string, OrtValue> feeds,
            string[] outputs,
            Func<IReadOnlyList<OrtValue>, T> read)
        {
            using (IDisposableReadOnlyCollection<OrtValue> values = Run(graph, feeds, outputs))
                return read(values.ToList());
        }

        private IDisposableReadOnlyCollection<OrtValue> Run(
            string graph, IReadOnlyDictionary<string, OrtValue> feeds, string[] outputs)
        {
            InferenceSession session = Session(graph);
            try
            {
                using (var settings = new RunOptions()) return session.Run(settings, feeds, outputs);
            }
            catch (Exception error)  // its exceptions have no common base: a new error code is a KeyNotFoundException
            {
                throw new NextScaleException(
                    $"{Bundle.GraphPath(graph)}: onnxruntime failed: {Wording.OneLine(error)}", error);
            }
        }

        /// <summary>Copy a tensor out of ONNX Runtime as `count` rows of `length` elements.</summary>
        /// <param name="copy">Copies a row of so many elements from the element that it begins with.</param>
        private static T[][] Rows<T>(
            OrtValue value, TensorElementType type, int count, long length, Func<int, int, T[]> copy)
        {
            OrtTensorTypeAndShapeInfo found = value.GetTensorTypeAndShape();
            if (found.ElementDataType != type || found.ElementCount > int.MaxValue
                || found.ElementCount / count != length || found.ElementCount % count != 0)
                throw new NextScaleException(
                    $"onnxruntime gave {found.ElementCount} numbers of {found.ElementDataType}, expected "
                    + $"{count} x {length} of {type}: the graph is not the one that the manifest describes");
            return Enumerable.Range(0, count).Select(i => copy(i * (int)length, (int)length)).ToArray();
        }

        private static byte[][] Bytes(OrtValue value, int count, long length)
        {
            return Rows(value, TensorElementType.UInt8, count, length,
                        (start, size) => value.GetTensorDataAsSpan<byte>().Slice(start, size).ToArray());
        }

        private static long[][] Integers(OrtValue value, int count, long length)
        {
            return Rows(value, TensorElementType.Int64, count, length,
                        (start, size) => value.GetTensorDataAsSpan<long>().Slice(start, size).ToArray());
        }

        private static float[] Floats(OrtValue value, long length)
        {
            return Rows(value, TensorElementType.Float, 1, length,
                        (start, size) => value.GetTensorDataAsSpan<float>().Slice(start, size).ToArray())[0];
        }

        /// <summary>Load a graph if it is not yet. Comes before the first tensor: only here is a missing native library
        /// an exception that says so.</summary>
        private InferenceSession Session(string graph)
        {
            lock (loading)
            {
                InferenceSession session;
                if (!sessions.TryGetValue(graph, out session))
                    sessions[graph] = session = SessionLoader.Open(Bundle, graph, options);
                return session;
            }
        }

        private T Using<T>(Func<T> work)
        {
            lock (counting)
            {
                if (disposed) throw new ObjectDisposedException(nameof(Generator));
                running++;
            }
            try
            {
                return work();
            }
            finally
            {
                bool last;
                lock (counting) last = --running == 0 && disposed;
                if (last) Release();
            }
        }

        private void Release()
        {
            lock (loading)
            {
                foreach (InferenceSession session in sessions.Values) session.Dispose();
                sessions.Clear();
            }
        }
    }

    /// <summary>A folder whose manifest was read and whose files all have the size that the manifest gives.</summary>
    public sealed class Bundle
    {
        private const string ManifestName = "manifest.json";
        private const int ManifestLimit = 32 << 20;  // bytes; a real one is below 1 MB
        private const int Shown = 8;

        private readonly Manifest manifest;

        internal Bundle(string folder, Manifest manifest)
        {
            Folder = folder;
            this.manifest = manifest;
        }

        public string Folder { get; }

        public string Name { get { return manifest.Name; } }

        /// <summary>The name of its quantization recipe.</summary>
        public string Recipe { get { return manifest.Recipe; } }

        public string Licence { get { return manifest.Licence; } }

        public ModelInfo Model { get { return manifest.Model; } }

        /// <summary>A name for each class, or null.</summary>
        public IReadOnlyList<string> ClassNames { get { return manifest.ClassNames; } }

        internal IReadOnlyDictionary<string, GraphInfo> Graphs { get { return manifest.Graphs; } }

        /// <summary>Read a bundle's manifest and check its files.</summary>
        /// <param name="verifyHashes">Also read every file and compare its sha256.</param>
        /// <exception cref="BundleException">No bundle there, or one that is damaged, newer, or has a file outside
        /// its folder.</exception>
        public static Bundle Open(string folder, bool verifyHashes = false)
        {
            if (folder == null) throw new ArgumentNullException(nameof(folder));
            if (!Directory.Exists(folder))
                throw new BundleException(
                    $"{Wording.Printable(folder)}: no such folder; expected a bundle made by `nextscale build`");
            string path = Path.Combine(folder, ManifestName);
            var bundle = new Bundle(folder, Manifest.Parse(ReadManifest(path), path));
            foreach (KeyValuePair<string, FileEntry> file in bundle.manifest.Files)
                bundle.CheckFile(file.Key, file.Value);
            if (verifyHashes) bundle.VerifyHashes();
            return bundle;
        }

        /// <summary>Read every file and compare its sha256.</summary>
        /// <exception cref="BundleException">A file's content is not what the manifest says.</exception>
        public void VerifyHashes()
        {
            foreach (KeyValuePair<string, FileEntry> file in manifest.Files)
            {
                string path = Path.Combine(Folder, file.Key);
                string found;
                try
                {
                    using (SHA256 sha256 = SHA256.Create())
                    using (FileStream stream = File.OpenRead(path))
                        found = BitConverter.ToString(sha256.ComputeHash(stream)).Replace("-", "");
                }
                catch (Exception error) when (error is IOException || error is UnauthorizedAccessException)
                {
                    throw new BundleException($"{path}: cannot be read: {Wording.OneLine(error)}", error);
                }
                if (!found.Equals(file.Value.Sha256, StringComparison.OrdinalIgnoreCase))
                    throw new BundleException(
                        $"{path}: the content was changed (sha256 differs from the manifest's); "
                        + "copy or build the bundle again");
            }
        }

        /// <summary>The id of a class.</summary>
        /// <param name="name">An id in digits, or a class name in any case. Where names list synonyms separated by
        /// commas, each synonym is a name.</param>
        /// <returns>0 to num_classes; num_classes is the null class.</returns>
        /// <exception cref="ClassLabelException">An id out of range, an unknown name, or a name that several classes
        /// share.</exception>
        public long ClassLabel(string name)
        {
            string digits = name.Trim();
            if (digits.Length == 0 || !digits.All(c => c >= '0' && c <= '9')) return LabelOfName(name);
            long label;
            if (!long.TryParse(digits, NumberStyles.None, CultureInfo.InvariantCulture, out label))
                throw new ClassLabelException(
                    $"class {digits.Substring(0, 18)}... is out of range: expected {LabelRange()}");
            return ClassLabel(label);
        }

        /// <summary>The same id, checked.</summary>
        /// <exception cref="ClassLabelException">The id is out of range.</exception>
        public long ClassLabel(long label)
        {
            if (label < 0 || label > Model.NumClasses)
                throw new ClassLabelException($"class {label} is out of range: expected {LabelRange()}");
            return label;
        }

        internal string GraphPath(string graph)
        {
            return Path.Combine(Folder, Graphs[graph].File);
        }

        private string LabelRange()
        {
            return $"0 to {Model.NumClasses - 1} ({Model.NumClasses} is the null class)";
        }

        private long LabelOfName(string name)
        {
            if (ClassNames == null)
                throw new ClassLabelException(
                    $"class \"{Wording.Printable(name)}\": this bundle has no class names; "
                    + $"give an id from 0 to {Model.NumClasses - 1}");
            string wanted = Folded(name);
            List<int> labels = Enumerable.Range(0, ClassNames.Count).ToList();
            List<int> found = labels.FindAll(label => Folded(ClassNames[label]) == wanted);
            if (found.Count == 0)
                found = labels.FindAll(label => ClassNames[label].Split(',').Any(part => Folded(part) == wanted));
            if (found.Count == 1) return found[0];
            if (found.Count > 1)
                throw new ClassLabelException(
                    $"class \"{Wording.Printable(name)}\" is the name of {found.Count} classes: give an id of "
                    + string.Join(", ", found.Take(Shown).Select(label => $"{label} ({ClassNames[label]})")));
            throw new ClassLabelException($"no class is named \"{Wording.Printable(name)}\"; {Suggestion(wanted)}");
        }

        /// <summary>The nearest names: those that contain the wanted text, then those spelled most like it.</summary>
        private string Suggestion(string wanted)
        {
            var known = new Dictionary<string, int>();
            for (int label = ClassNames.Count - 1; label >= 0; label--)
                foreach (string part in ClassNames[label].Split(',')) known[Folded(part)] = label;
            List<string> nearest = known.Keys
                .Where(name => wanted.Length > 0)
                .Select(name => new { name, distance = name.Contains(wanted) ? 0 : EditDistance(name, wanted) })
                .Where(item => item.distance <= wanted.Length / 3)
                .OrderBy(item => item.distance).ThenBy(item => known[item.name])
                .Take(Shown).Select(item => $"{item.name} ({known[item.name]})").ToList();
            return nearest.Count > 0
                ? "nearest: " + string.Join(", ", nearest)
                : "`nextscale inspect DIR --classes` lists the names";
        }

        private static int EditDistance(string a, string b)
        {
            int[] previous = Enumerable.Range(0, b.Length + 1).ToArray();
            foreach (char letter in a)
            {
                var current = new int[b.Length + 1];
                current[0] = previous[0] + 1;
                for (int j = 0; j < b.Length; j++)
                {
                    int edited = Math.Min(previous[j + 1], current[j]) + 1;
                    current[j + 1] = Math.Min(edited, previous[j] + (letter == b[j] ? 0 : 1));
                }
                previous = current;
            }
            return previous[b.Length];
        }

        private static string Folded(string name)
        {
            string[] words = name.ToLowerInvariant().Replace('_', ' ')
                .Split((char[])null, StringSplitOptions.RemoveEmptyEntries);
            return string.Join(" ", words);
        }

        private static byte[] ReadManifest(string path)
        {
            try
            {
                using (FileStream stream = File.OpenRead(path))
                {
                    var content = new MemoryStream();
                    var buffer = new byte[1 << 16];
                    for (int length; (length = stream.Read(buffer, 0, buffer.Length)) > 0;)
                    {
                        content.Write(buffer, 0, length);
                        if (content.Length > ManifestLimit)
                            throw new BundleException(
                                $"{path}: larger than {ManifestLimit} bytes, which no manifest is");
                    }
                    return content.ToArray();
                }
            }
            catch (FileNotFoundException error)
            {
                throw new BundleException(
                    $"{path}: the file is missing; expected a bundle made by `nextscale build`", error);
            }
            catch (Exception error) when (error is IOException || error is UnauthorizedAccessException)
            {
                throw new BundleException($"{path}: cannot be read: {Wording.OneLine(error)}", error);
            }
        }

        private void CheckFile(string name, FileEntry entry)
        {
            var file = new FileInfo(Path.Combine(Folder, name));
            if (LeavesFolder(file))
                throw new BundleException(
                    $"{file}: the file is a link out of the bundle's folder, as in a download cache; "
                    + "make a real copy of the folder (cp -rL) and use that");
            if (!file.Exists)
                throw new BundleException($"{file}: the file is missing; copy or build the bundle again");
            if (file.Length != entry.Size)
                throw new BundleException(
                    $"{file}: {file.Length} bytes, but the manifest says {entry.Size}: the file was truncated or "
                    + "changed; copy or build the bundle again");
        }

        /// <summary>Whether a file is a link to elsewhere. Before .NET 6 nothing tells where a link leads, so that
        /// there any link counts.</summary>
        private static bool LeavesFolder(FileInfo file)
        {
#if NET6_0_OR_GREATER
            FileSystemInfo target = file.ResolveLinkTarget(true);
            return target != null && Path.GetDirectoryName(target.FullName) != file.DirectoryName;
#else
            return file.Exists && (file.Attributes & FileAttributes.ReparsePoint) != 0;
#endif
        }
    }

    /// <summary>The sizes of the model; symbols as in docs/bundle.md.</summary>
    public sealed class ModelInfo
    {
        internal ModelInfo(Fields fields)
        {
            PatchNums = fields.Items("patch_nums", (owner, key, value) => (int)owner.AsInteger(key, value, 1, 4096));
            if (PatchNums.Count == 0 || !PatchNums.SequenceEqual(PatchNums.OrderBy(pn => pn)))
                fields.Refuse("patch_nums", "side lengths in ascending order", fields.Get("patch_nums"));
            NumClasses = fields.Integer("num_classes", 1);
            ImageSize = fields.Integer("image_size", 1);
            VocabSize = fields.Integer("vocab_size", 1);
            foreach (string key in new[] { "depth", "embed_dim", "num_heads" }) fields.Integer(key, 1);
            LatentChannels = fields.Integer("latent_channels", 1);
            LatentSize = fields.Integer("latent_size", 1);
            if (LatentSize != PatchNums[PatchNums.Count - 1])
                fields.Refuse("latent_size", $"{PatchNums[PatchNums.Count - 1]}, the last of patch_nums",
                              fields.Get("latent_size"));
        }

        public long NumClasses { get; }

        /// <summary>The side length of each stage's token map.</summary>
        public IReadOnlyList<int> PatchNums { get; }

        /// <summary>H = W, in pixels.</summary>
        public long ImageSize { get; }

        /// <summary>V, the entries of the codebook.</summary>
        public long VocabSize { get; }

        public int NumStages { get { return PatchNums.Count; } }

        /// <summary>L, the tokens of all stages.</summary>
        public long NumTokens { get { return PatchNums.Sum(pn => (long)pn * pn); } }

        internal long LatentChannels { get; }

        internal long LatentSize { get; }

        /// <summary>-1 where that is beyond any array: sizes come from an untrusted file.</summary>
        internal long ImageBytes { get { return ImageSize < 1 << 20 ? ImageSize * ImageSize * 3 : -1; } }

        /// <summary>Elements of so many images' f_hat; -1 as for ImageBytes.</summary>
        internal long LatentLength(int count)
        {
            return LatentChannels < int.MaxValue / (LatentSize * LatentSize)
                ? count * LatentChannels * LatentSize * LatentSize : -1;
        }
    }

    /// <summary>The contract's random numbers: Philox4x32-10, so that image i of seed s is the same in any batch and
    /// language. Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3 (SC 2011).</summary>
    public static class Uniforms
    {
        /// <summary>Ten rounds of Philox4x32.</summary>
        /// <param name="counter">[4], overwritten with the four words.</param>
        public static void Philox4x32(uint[] counter, uint key0, uint key1)
        {
            unchecked
            {
                for (int round = 0; round < 10; round++)
                {
                    ulong product0 = 0xD2511F53UL * counter[0], product1 = 0xCD9E8D57UL * counter[2];
                    counter[0] = (uint)(product1 >> 32) ^ counter[1] ^ key0;
                    counter[1] = (uint)product1;
                    counter[2] = (uint)(product0 >> 32) ^ counter[3] ^ key1;
                    counter[3] = (uint)product0;
                    key0 += 0x9E3779B9;  // golden ratio
                    key1 += 0xBB67AE85;  // sqrt(3) - 1
                }
            }
        }

        /// <summary>One number in [0, 1) for each token of one image; they depend on (seed, image) alone.
        ///
        /// Token t takes word t % 4 of Philox4x32-10 with key (low, high half of the seed) and counter
        /// (t / 4, low, high half of the image, 0), as (word >> 8) * 2^-24.</summary>
        public static float[] OfImage(ulong seed, ulong image, int length)
        {
            var numbers = new float[length];
            var words = new uint[4];
            for (int token = 0; token < length; token++)
            {
                if (token % 4 == 0)
                {
                    words[0] = (uint)(token / 4);
                    words[1] = unchecked((uint)image);
                    words[2] = (uint)(image >> 32);
                    words[3] = 0;
                    Philox4x32(words, unchecked((uint)seed), (uint)(seed >> 32));
                }
                numbers[token] = (words[token % 4] >> 8) * (1f / (1 << 24));
            }
            return numbers;
        }
    }

    /// <summary>A request after its checks, as the six inputs that every graph of a bundle shares.</summary>
    internal sealed class ModelInputs
    {
        private const string NumberLimit = "a finite number of at least 0";

        public long[] ClassLabels;
        public float[] Uniforms;       // [B * L]
        public long[] ForcedTokens;    // [B * L]
        public float CfgScale;
        public long TopK;
        public float TopP;

        public int Count { get { return ClassLabels.Length; } }

        public int NumTokens { get { return Uniforms.Length / Count; } }

        public static ModelInputs Create(Bundle bundle, GenerationRequest request)
        {
            ModelInfo model = bundle.Model;
            long[] labels = request.ClassLabels.Select(bundle.ClassLabel).ToArray();
            int count = labels.Length;
            if (count == 0) throw new RequestException("class_labels is empty: expected at least one class");
            if (count > int.MaxValue / model.NumTokens)
                throw new RequestException($"class_labels: {count} images are too many for one request");
            int length = (int)model.NumTokens;
            if (request.Uniforms == null && request.FirstImage > ulong.MaxValue - (ulong)(count - 1))
                throw new RequestException(
                    $"first_image {request.FirstImage} is out of range: expected 0 to 2^64 - {count}");
            return new ModelInputs
            {
                ClassLabels = labels,
                Uniforms = request.Uniforms == null
                    ? SeedUniforms(request, count, length)
                    : CheckedUniforms(request.Uniforms, count, length),
                ForcedTokens = CheckedTokens(request.ForcedTokens, count, length, model.VocabSize),
                CfgScale = CheckedNumber("cfg_scale", request.CfgScale, float.MaxValue, NumberLimit),
                TopK = CheckedTopK(request.TopK, model.VocabSize),
                TopP = CheckedNumber("top_p", request.TopP, 1.0, "0 to 1"),
            }.WithBatch(request.BatchSize);
        }

        /// <summary>The same request for `count` images from `first` alone.</summary>
        public ModelInputs Images(int first, int count)
        {
            int length = NumTokens;
            return count == Count ? this : new ModelInputs
            {
                ClassLabels = ClassLabels.Skip(first).Take(count).ToArray(),
                Uniforms = Uniforms.Skip(first * length).Take(count * length).ToArray(),
                ForcedTokens = ForcedTokens.Skip(first * length).Take(count * length).ToArray(),
                CfgScale = CfgScale,
                TopK = TopK,
                TopP = TopP,
            };
        }

        private ModelInputs WithBatch(int? batchSize)
        {
            if (batchSize < 1)
                throw new RequestException($"batch_size {batchSize} is out of range: expected at least 1");
            return this;
        }

        private static float[] SeedUniforms(GenerationRequest request, int count, int length)
        {
            var numbers = new float[count * length];
            for (int i = 0; i < count; i++)
                NextScale.Uniforms.OfImage(request.Seed, request.FirstImage + (ulong)i, length)
                    .CopyTo(numbers, i * length);
            return numbers;
        }

        private static float[] CheckedUniforms(float[][] rows, int count, int length)
        {
            float[] numbers = Flat("uniforms", "floats", rows, count, length);
            if (!numbers.All(number => number >= 0 && number < 1))  // written so that NaN is refused
                throw new RequestException("uniforms: expected numbers of at least 0 and below 1");
            return numbers;
        }

        private static long[] CheckedTokens(long[][] rows, int count, int length, long vocabSize)
        {
            if (rows == null) return Enumerable.Repeat(-1L, count * length).ToArray();
            long[] tokens = Flat("forced_tokens", "integers", rows, count, length);
            if (tokens.Min() < -1 || tokens.Max() >= vocabSize)
                throw new RequestException(
                    $"forced_tokens: expected -1 (sample) to {vocabSize - 1}, found {tokens.Min()} to {tokens.Max()}");
            return tokens;
        }

        private static T[] Flat<T>(string name, string kind, T[][] rows, int count, int length)
        {
            if (rows.Length != count)
                throw new RequestException($"{name}: expected {kind} [{count}, {length}], found {rows.Length} rows");
            foreach (T[] row in rows)
                if (row == null || row.Length != length)
                    throw new RequestException(
                        $"{name}: expected {kind} [{count}, {length}], found a row of {row?.Length ?? 0}");
            return rows.SelectMany(row => row).ToArray();
        }

        private static long CheckedTopK(long? topK, long vocabSize)
        {
            long number = topK ?? Math.Min(GenerationRequest.DefaultTopK, vocabSize);
            if (number < 0 || number > vocabSize)
                throw new RequestException(
                    $"top_k {number} is out of range: expected 0 (off) to {vocabSize}, the entries of the codebook");
            return number;
        }

        private static float CheckedNumber(string name, double number, double maximum, string limit)
        {
            if (number >= 0 && number <= maximum) return (float)number;  // NaN fails both
            string shown = number.ToString("g6", CultureInfo.InvariantCulture);
            throw new RequestException($"{name} {shown} is out of range: expected {limit}");
        }
    }

    /// <summary>A graph's inputs as tensors over the request's own memory, which stays pinned until disposal.</summary>
    internal sealed class Feeds : IDisposable
    {
        private readonly List<OrtValue> owned = new List<OrtValue>();
        private readonly int count;

        public Feeds(ModelInputs inputs)
        {
            count = inputs.Count;
            Add("class_labels", inputs.ClassLabels, count);
            Add("uniforms", inputs.Uniforms, count, inputs.NumTokens);
            Add("forced_tokens", inputs.ForcedTokens, count, inputs.NumTokens);
            Add("cfg_scale", new[] { inputs.CfgScale });
            Add("top_k", new[] { inputs.TopK });
            Add("top_p", new[] { inputs.TopP });
        }

        /// <summary>By input name. Only what Add and AddZeros made is disposed with the feeds.</summary>
        public Dictionary<string, OrtValue> Values { get; } = new Dictionary<string, OrtValue>();

        /// <summary>No sizes make a scalar.</summary>
        public void Add(string name, long[] data, params long[] shape)
        {
            Own(name, OrtValue.CreateTensorValueFromMemory(data, shape));
        }

        public void Add(string name, float[] data, params long[] shape)
        {
            Own(name, OrtValue.CreateTensorValueFromMemory(data, shape));
        }

        public void AddZeros(StateInfo state)
        {
            long[] shape = state.InitialShape
                .Select(size => size is long ? (long)size : (string)size == "B" ? count : 2L * count).ToArray();
            try
            {
                Own(state.Input, OrtValue.CreateAllocatedTensorValue(
                    OrtAllocator.DefaultInstance, SessionLoader.ElementTypes[state.Dtype], shape));
                if (!shape.Contains(0)) Values[state.Input].GetTensorMutableRawData().Clear();
            }
            catch (Exception error) when (error is OnnxRuntimeException || error is OverflowException)
            {
                throw new NextScaleException(
                    $"no memory for the state \"{state.Input}\" of {count} images: {Wording.OneLine(error)}", error);
            }
        }

        public void Dispose()
        {
            foreach (OrtValue value in owned) value.Dispose();
        }

        private void Own(string name, OrtValue value)
        {
            owned.Add(value);
            Values[name] = value;
        }
    }

    /// <summary>Opens ONNX Runtime sessions with the options that suit a bundle.</summary>
    internal static class SessionLoader
    {
        public static readonly IReadOnlyDictionary<string, TensorElementType> ElementTypes =
            new Dictionary<string, TensorElementType>
            {
                { "float32", TensorElementType.Float }, { "float16", TensorElementType.Float16 },
                { "int64", TensorElementType.Int64 }, { "int32", TensorElementType.Int32 },
                { "int8", TensorElementType.Int8 }, { "uint8", TensorElementType.UInt8 },
            };

        private static readonly Version Minimum = new Version(1, 22);

        /// <summary>Load one graph and check that it is the one that the manifest describes.</summary>
        public static InferenceSession Open(Bundle bundle, string graph, GeneratorOptions options)
        {
            string version = RequireOnnxRuntime();
            string path = bundle.GraphPath(graph);
            InferenceSession session;
            try
            {
                using (SessionOptions settings = Settings(options)) session = new InferenceSession(path, settings);
            }
            catch (Exception error)  // its exceptions have no common base: a new error code is a KeyNotFoundException
            {
                throw new BundleException(
                    $"{path}: onnxruntime {version} cannot load it: {Wording.OneLine(error)}", error);
            }
            GraphInfo info = bundle.Graphs[graph];
            string difference = Difference("input", info.Inputs, session.InputMetadata)
                ?? Difference("output", info.Outputs, session.OutputMetadata);
            if (difference == null) return session;
            session.Dispose();
            throw new BundleException($"{path}: not the graph that the manifest describes: {difference}");
        }

        private static SessionOptions Settings(GeneratorOptions options)
        {
            var settings = new SessionOptions
            {
                IntraOpNumThreads = options.Threads,
                InterOpNumThreads = 1,
                EnableCpuMemArena = options.MemoryArena,
                EnableMemoryPattern = options.MemoryPattern,
                LogSeverityLevel = OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR,  // what is wrong is an exception anyway
            };
            settings.AddSessionConfigEntry("session.intra_op.allow_spinning", options.Spinning ? "1" : "0");
            // Threads of a run that has ended would take cores from the next session's for a while.
            settings.AddSessionConfigEntry("session.force_spinning_stop", "1");
            return settings;
        }

        private static string RequireOnnxRuntime()
        {
            string version;
            try
            {
                version = OrtEnv.Instance().GetVersionString();
            }
            catch (Exception error) when (error is TypeInitializationException || error is DllNotFoundException
                                          || error is EntryPointNotFoundException || error is BadImageFormatException)
            {
                string reason = Wording.OneLine(error.InnerException ?? error);
                throw new NextScaleException(
                    "onnxruntime's native library cannot be loaded: install the package Microsoft.ML.OnnxRuntime, or "
                    + $"put the library where the system looks for it ({reason})", error);
            }
            Match numbers = Regex.Match(version, @"^(\d+)\.(\d+)");
            if (!numbers.Success || new Version(numbers.Value) < Minimum)
                throw new NextScaleException(
                    $"onnxruntime {version} is too old: bundles need {Minimum} or later: update the package "
                    + "Microsoft.ML.OnnxRuntime");
            return version;
        }

        private static string Difference(
            string kind, IReadOnlyList<TensorInfo> declared, IReadOnlyDictionary<string, NodeMetadata> actual)
        {
            Dictionary<string, TensorInfo> expected = declared.GroupBy(tensor => tensor.Name)
                .ToDictionary(group => group.Key, group => group.Last());
            foreach (string name in expected.Keys.Union(actual.Keys).OrderBy(name => name, StringComparer.Ordinal))
            {
                if (!actual.ContainsKey(name)) return $"{kind} \"{name}\" is only in the manifest";
                TensorInfo found = Describe(name, actual[name]);
                if (!expected.ContainsKey(name)) return $"{kind} \"{Wording.Printable(name)}\" is only in the file";
                if (!Agree(expected[name], found))
                    return $"{kind} \"{name}\": the manifest says {expected[name]}, the file {found}";
            }
            return null;
        }

        private static TensorInfo Describe(string name, NodeMetadata node)
        {
            if (!node.IsTensor) return new TensorInfo(name, node.OnnxValueType.ToString(), new object[0]);
            string dtype = ElementTypes.Where(pair => pair.Value == node.ElementDataType)
                .Select(pair => pair.Key).FirstOrDefault() ?? node.ElementDataType.ToString();
            object[] shape = node.Dimensions.Select((size, axis) =>
                size >= 0 ? (object)(long)size : Symbol(node.SymbolicDimensions[axis])).ToArray();
            return new TensorInfo(name, dtype, shape);
        }

        private static string Symbol(string name)
        {
            return string.IsNullOrEmpty(name) ? null : Wording.Printable(name);
        }

        /// <summary>Types are equal, and ranks and sizes wherever both sides tell (an unknown rank reads as no
        /// dimensions).</summary>
        private static bool Agree(TensorInfo expected, TensorInfo found)
        {
            if (expected.Dtype != found.Dtype || found.Shape.Count == 0) return expected.Dtype == found.Dtype;
            return expected.Shape.Count == found.Shape.Count && expected.Shape.Zip(
                found.Shape, (a, b) => !(a is long) || !(b is long) || (long)a == (long)b).All(equal => equal);
        }
    }

    /// <summary>A graph's input or output; a dimension is a long, a symbol such as "B", or null.</summary>
    internal sealed class TensorInfo
    {
        public TensorInfo(string name, string dtype, IReadOnlyList<object> shape)
        {
            Name = name;
            Dtype = dtype;
            Shape = shape;
        }

        public string Name { get; }

        public string Dtype { get; }

        public IReadOnlyList<object> Shape { get; }

        public override string ToString()
        {
            return $"{Dtype} [{string.Join(", ", Shape.Select(size => size ?? "?"))}]";
        }
    }

    /// <summary>A tensor that the host carries from one stage to the next; it starts as zeros.</summary>
    internal sealed class StateInfo
    {
        public string Input;
        public string Output;
        public string Dtype;
        public IReadOnlyList<object> InitialShape;  // a long, "B" or "2B"
    }

    /// <summary>One ONNX file and its contract.</summary>
    internal sealed class GraphInfo
    {
        public string File;
        public IReadOnlyList<TensorInfo> Inputs;
        public IReadOnlyList<TensorInfo> Outputs;
        public IReadOnlyList<StateInfo> State;
    }

    internal sealed class FileEntry
    {
        public long Size;
        public string Sha256;
    }

    /// <summary>manifest.json, schema 1; the parser trusts nothing that it reads.</summary>
    internal sealed class Manifest
    {
        private const int Schema = 1;
        private const int Shown = 8;
        private const long MaxDimension = 1L << 31;
        // Of the state for one image; a real f_hat has 32,768 elements in four dimensions.
        private const int StateDimensions = 8;
        private const long StateElements = 1 << 28;

        private static readonly Contract RequestInputs = new Contract
        {
            { "class_labels", "int64" }, { "uniforms", "float32" }, { "forced_tokens", "int64" },
            { "cfg_scale", "float32" }, { "top_k", "int64" }, { "top_p", "float32" },
        };

        public string Name { get; private set; }

        public string Recipe { get; private set; }

        public string Licence { get; private set; }

        public ModelInfo Model { get; private set; }

        public IReadOnlyList<string> ClassNames { get; private set; }

        public IReadOnlyDictionary<string, GraphInfo> Graphs { get; private set; }

        public IReadOnlyDictionary<string, FileEntry> Files { get; private set; }

        /// <summary>Parse and check a manifest; keys that it does not know are ignored.</summary>
        /// <param name="where">How errors name the file.</param>
        public static Manifest Parse(byte[] content, string where)
        {
            object document;
            try
            {
                document = Json.Parse(content);
            }
            catch (FormatException error)
            {
                throw new BundleException(
                    $"{where}: not a JSON document ({error.Message}); the file is damaged or not a manifest", error);
            }
            var root = new Fields(document, where, "");
            long schema = root.Integer("schema", 1);
            if (schema > Schema) throw new BundleException(NewerSchema(root, schema));
            var model = new ModelInfo(root.Object("model"));
            Fields filesFields = root.Object("files");
            Dictionary<string, FileEntry> files =
                filesFields.Value.Keys.ToDictionary(name => name, name => ReadFile(filesFields.Object(name)));
            foreach (string name in files.Keys)
                if (!Wording.IsPlainName(name))
                    root.Refuse("files", "plain file names inside the bundle's folder", name);
            Fields graphsFields = root.Object("graphs");
            Dictionary<string, GraphInfo> graphs = new[] { "generate", "stage", "decoder" }
                .ToDictionary(name => name, name => ReadGraph(graphsFields.Object(name), name, files));
            IReadOnlyList<string> names = root.Value.ContainsKey("class_names") && root.Value["class_names"] != null
                ? root.Items("class_names", (owner, key, value) => owner.AsText(key, value))
                : null;
            if (names != null && names.Count != model.NumClasses)
                root.Refuse("class_names", $"{model.NumClasses} names, as model.num_classes says", (long)names.Count);
            CheckVerify(root.Object("verify"), model);
            root.Object("versions");
            return new Manifest
            {
                Name = root.Text("name"),
                Recipe = root.Object("recipe").Text("name"),
                Licence = root.Text("licence"),
                Model = model,
                ClassNames = names,
                Graphs = graphs,
                Files = files,
            };
        }

        private static FileEntry ReadFile(Fields fields)
        {
            string sha256 = fields.Text("sha256").ToLowerInvariant();
            if (!Regex.IsMatch(sha256, @"\A[0-9a-f]{64}\z")) fields.Refuse("sha256", "64 hexadecimal digits", sha256);
            return new FileEntry { Size = fields.Integer("size"), Sha256 = sha256 };
        }

        /// <summary>Read one graph; it must have the contract's inputs and outputs, or a host could not run it. More
        /// outputs do no harm: a bundle made for debugging has them.</summary>
        private static GraphInfo ReadGraph(Fields fields, string name, Dictionary<string, FileEntry> files)
        {
            string file = fields.Text("file");
            if (!files.ContainsKey(file)) fields.Refuse("file", "a plain file name that \"files\" lists", file);
            IReadOnlyList<StateInfo> state = name == "stage" ? fields.Items("state", ReadState) : new StateInfo[0];
            var graph = new GraphInfo
            {
                File = file,
                Inputs = fields.Items("inputs", ReadTensor),
                Outputs = fields.Items("outputs", ReadTensor),
                State = state,
            };
            Contract inputs, outputs;
            if (name == "generate")
            {
                inputs = RequestInputs;
                outputs = new Contract { { "images", "uint8" }, { "token_maps", "int64" } };
            }
            else if (name == "stage")
            {
                inputs = new Contract(RequestInputs) { { "stage", "int64" } };
                outputs = new Contract { { "tokens", "int64" }, { "logits", "float32" } };
                foreach (StateInfo item in state)
                {
                    inputs[item.Input] = item.Dtype;
                    outputs[item.Output] = item.Dtype;
                }
            }
            else
            {
                inputs = new Contract { { "f_hat", "float32" } };
                outputs = new Contract { { "images", "uint8" } };
            }
            Contract foundInputs = Contract.Of(graph.Inputs), foundOutputs = Contract.Of(graph.Outputs);
            if (!(inputs.Count == foundInputs.Count && inputs.IsPartOf(foundInputs)))
                fields.Refuse("inputs", $"the contract's, {inputs}", foundInputs.ToJson());
            if (!outputs.IsPartOf(foundOutputs))
                fields.Refuse("outputs", $"the contract's, {outputs}", foundOutputs.ToJson());
            if (name == "stage" && state.All(item => item.Input != "f_hat"))
                fields.Refuse("state", "an entry for \"f_hat\"", state.Select(item => (object)item.Input).ToList());
            return graph;
        }

        private static TensorInfo ReadTensor(Fields owner, string key, object value)
        {
            Fields fields = owner.Nested(key, value);
            return new TensorInfo(fields.Text("name"), fields.Dtype(), fields.Items("shape", ReadDimension));
        }

        private static object ReadDimension(Fields owner, string key, object value)
        {
            return value == null || value is string ? value : owner.AsInteger(key, value);
        }

        private static StateInfo ReadState(Fields owner, string key, object value)
        {
            Fields fields = owner.Nested(key, value);
            IReadOnlyList<object> shape = fields.Items("initial_shape", (_, place, size) =>
                "B".Equals(size) || "2B".Equals(size) ? size : fields.AsInteger(place, size, 0, MaxDimension));
            long elements = 1;
            foreach (long size in shape.OfType<long>().Where(size => size > 0))
                elements = Math.Min(elements * size, StateElements + 1);
            if (shape.Count > StateDimensions || elements > StateElements)
                fields.Refuse("initial_shape",
                              $"at most {StateDimensions} dimensions of {StateElements} elements in all",
                              fields.Get("initial_shape"));
            return new StateInfo
            {
                Input = fields.Text("input"),
                Output = fields.Text("output"),
                Dtype = fields.Dtype(),
                InitialShape = shape,
            };
        }

        private static void CheckVerify(Fields fields, ModelInfo model)
        {
            int labels = fields.Items(
                "class_labels", (owner, key, value) => owner.AsInteger(key, value, 0, model.NumClasses)).Count;
            int rows = fields.Items("token_maps", (owner, key, value) =>
            {
                var row = value as List<object>;
                if (row == null || row.Count != model.NumTokens)
                    owner.Refuse(key, $"a list of {model.NumTokens} tokens", value);
                for (int i = 0; i < row.Count; i++) owner.AsInteger($"{key}[{i}]", row[i], 0, model.VocabSize - 1);
                return true;
            }).Count;
            if (labels == 0 || rows != labels)
                fields.Refuse("token_maps", $"one row for each of {labels} class_labels", (long)rows);
            object cfgScale = fields.Get("cfg_scale");
            var number = cfgScale as JsonNumber;
            if (number == null || !(number.AsDouble() >= 0 && number.AsDouble() < double.PositiveInfinity))
                fields.Refuse("cfg_scale", "a number of at least 0", cfgScale);
            ulong seed;
            var seedNumber = fields.Get("seed") as JsonNumber;
            if (seedNumber == null || !seedNumber.TryUInt64(out seed))
                fields.Refuse("seed", $"an integer from 0 to {ulong.MaxValue}", fields.Get("seed"));
        }

        private static string NewerSchema(Fields root, long schema)
        {
            object versions, maker = null;
            root.Value.TryGetValue("versions", out versions);
            (versions as Dictionary<string, object>)?.TryGetValue("nextscale", out maker);
            var version = maker as string;
            bool known = version != null && version.Length < 40 && Wording.IsPrintable(version);
            return $"{root.Where}: schema {schema} is newer than schema {Schema}, which this NextScale.cs reads: take "
                + $"NextScale.cs of nextscale {(known ? version + " or later" : "in a newer release")}";
        }

        /// <summary>Names and dtypes of tensors.</summary>
        private sealed class Contract : Dictionary<string, string>
        {
            public Contract() { }

            public Contract(Contract other) : base(other) { }

            public static Contract Of(IEnumerable<TensorInfo> tensors)
            {
                var contract = new Contract();
                foreach (TensorInfo tensor in tensors) contract[tensor.Name] = tensor.Dtype;
                return contract;
            }

            public bool IsPartOf(Contract found)
            {
                return this.All(pair => found.ContainsKey(pair.Key) && found[pair.Key] == pair.Value);
            }

            public object ToJson()
            {
                return this.ToDictionary(pair => pair.Key, pair => (object)pair.Value);
            }

            public override string ToString()
            {
                string names = string.Join(", ", this.Take(Shown).Select(pair => $"{pair.Key} ({pair.Value})"));
                return Count <= Shown ? names : names + ", ...";
            }
        }
    }

    /// <summary>A JSON object whose reads are checked; errors name the key by its full path.</summary>
    internal sealed class Fields
    {
        public readonly string Where;
        public readonly Dictionary<string, object> Value;
        private readonly string path;

        public Fields(object value, string where, string path)
        {
            Where = where;
            this.path = path;
            Value = value as Dictionary<string, object>;
            string place = path.Length > 0 ? path : "document";
            if (Value == null)
                throw new BundleException($"{where}: {place}: expected a JSON object, found {Json.Show(value)}");
        }

        /// <summary>Throw the exception that every refusal of a value ends in.</summary>
        public void Refuse(string key, string expected, object found)
        {
            throw new BundleException($"{Where}: {PathOf(key)}: expected {expected}, found {Json.Show(found)}");
        }

        public object Get(string key)
        {
            object value;
            if (!Value.TryGetValue(key, out value))
                throw new BundleException($"{Where}: key \"{PathOf(key)}\" is missing; build the bundle again");
            return value;
        }

        public Fields Object(string key)
        {
            return Nested(key, Get(key));
        }

        public Fields Nested(string key, object value)
        {
            return new Fields(value, Where, PathOf(key));
        }

        public long Integer(string key, long minimum = 0, long maximum = long.MaxValue)
        {
            return AsInteger(key, Get(key), minimum, maximum);
        }

        public long AsInteger(string key, object value, long minimum = 0, long maximum = long.MaxValue)
        {
            long number = 0;
            var text = value as JsonNumber;
            if (text == null || !text.TryInt64(out number) || number < minimum || number > maximum)
                Refuse(key, "an integer " + (maximum == long.MaxValue
                    ? $"of at least {minimum}" : $"from {minimum} to {maximum}"), value);
            return number;
        }

        public string Text(string key)
        {
            return AsText(key, Get(key));
        }

        public string AsText(string key, object value)
        {
            var text = value as string;
            if (text == null || !Wording.IsPrintable(text)) Refuse(key, "a line of printable text", value);
            return text;
        }

        public string Dtype()
        {
            string dtype = Text("dtype");
            if (!SessionLoader.ElementTypes.ContainsKey(dtype))
                Refuse("dtype", "one of " + string.Join(", ", SessionLoader.ElementTypes.Keys), dtype);
            return dtype;
        }

        public IReadOnlyList<T> Items<T>(string key, Func<Fields, string, object, T> read)
        {
            object value = Get(key);
            var list = value as List<object>;
            if (list == null) Refuse(key, "a list", value);
            return list.Select((item, index) => read(this, $"{key}[{index}]", item)).ToList();
        }

        private string PathOf(string key)
        {
            return Wording.Printable(path.Length > 0 ? $"{path}.{key}" : key);
        }
    }

    /// <summary>A number as it is written: integers beyond 64 bits stay what they are.</summary>
    internal sealed class JsonNumber
    {
        private readonly string text;

        public JsonNumber(string text)
        {
            this.text = text;
        }

        public bool TryInt64(out long value)
        {
            return long.TryParse(text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out value);
        }

        public bool TryUInt64(out ulong value)
        {
            return ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out value) || text == "-0";
        }

        /// <summary>NaN where the framework cannot represent it.</summary>
        public double AsDouble()
        {
            double value;
            bool known = double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out value);
            return known ? value : double.NaN;
        }

        public override string ToString()
        {
            return text;
        }
    }

    /// <summary>JSON as Dictionary, List, string, bool, null and JsonNumber.</summary>
    internal static class Json
    {
        private const int MaxDepth = 64;
        private const int MaxShown = 80;

        /// <exception cref="FormatException">Not one JSON document in UTF-8.</exception>
        public static object Parse(byte[] content)
        {
            int mark = content.Length >= 3 && content[0] == 0xEF && content[1] == 0xBB && content[2] == 0xBF ? 3 : 0;
            string text;
            try
            {
                text = new UTF8Encoding(false, true).GetString(content, mark, content.Length - mark);
            }
            catch (ArgumentException)
            {
                throw new FormatException("not UTF-8");
            }
            return ParseText(text);
        }

        /// <summary>As JSON, short enough for one line.</summary>
        public static string Show(object value)
        {
            var text = new StringBuilder();
            Write(value, text);
            return text.Length <= MaxShown ? text.ToString() : text.ToString(0, MaxShown - 3) + "...";
        }

        private static void Write(object value, StringBuilder text)
        {
            if (text.Length > MaxShown) return;
            var fields = value as Dictionary<string, object>;
            var items = value as List<object>;
            if (fields != null)
            {
                string separator = "{";
                foreach (KeyValuePair<string, object> field in fields)
                {
                    text.Append(separator).Append(Quoted(field.Key)).Append(": ");
                    Write(field.Value, text);
                    separator = ", ";
                }
                text.Append(fields.Count == 0 ? "{}" : "}");
            }
            else if (items != null)
            {
                string separator = "[";
                foreach (object item in items)
                {
                    text.Append(separator);
                    Write(item, text);
                    separator = ", ";
                }
                text.Append(items.Count == 0 ? "[]" : "]");
            }
            else if (value is string) text.Append(Quoted((string)value));
            else if (value is bool) text.Append((bool)value ? "true" : "false");
            else text.Append(value ?? "null");
        }

        private static string Quoted(string value)
        {
            var text = new StringBuilder("\"");
            foreach (char letter in value.Length > MaxShown ? value.Substring(0, MaxShown) : value)
            {
                if (letter == '"' || letter == '\\') text.Append('\\').Append(letter);
                else if (letter >= ' ' && letter <= '~') text.Append(letter);
                else text.Append("\\u").Append(((int)letter).ToString("x4", CultureInfo.InvariantCulture));
            }
            return text.Append('"').ToString();
        }

#if NETCOREAPP
        private static object ParseText(string text)
        {
            try
            {
                var options = new JsonDocumentOptions { MaxDepth = MaxDepth };
                using (JsonDocument document = JsonDocument.Parse(text, options)) return Convert(document.RootElement);
            }
            catch (Exception error) when (error is JsonException || error is InvalidOperationException)
            {
                throw new FormatException(Wording.OneLine(error));  // a lone surrogate is the second kind
            }
        }

        private static object Convert(JsonElement element)
        {
            switch (element.ValueKind)
            {
                case JsonValueKind.Object:
                    var fields = new Dictionary<string, object>();
                    foreach (JsonProperty field in element.EnumerateObject()) fields[field.Name] = Convert(field.Value);
                    return fields;
                case JsonValueKind.Array:
                    var items = new List<object>();
                    foreach (JsonElement item in element.EnumerateArray()) items.Add(Convert(item));
                    return items;
                case JsonValueKind.String:
                    return element.GetString();
                case JsonValueKind.Number:
                    return new JsonNumber(element.GetRawText());
                case JsonValueKind.Null:
                    return null;
                default:
                    return element.GetBoolean();
            }
        }
#else
        // .NET Framework's and mono's own parsers take what is no JSON, such as "{} {}" and "[1 2]".
        private static object ParseText(string text)
        {
            int at = 0;
            object value = ParseValue(text, ref at, 0);
            SkipSpace(text, ref at);
            if (at < text.Length) throw Unexpected(text, at);
            return value;
        }

        private static readonly Regex Number =
            new Regex(@"\G-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?", RegexOptions.CultureInvariant);

        private static object ParseValue(string text, ref int at, int depth)
        {
            if (depth > MaxDepth) throw new FormatException($"deeper than {MaxDepth} levels");
            SkipSpace(text, ref at);
            switch (at < text.Length ? text[at] : '\0')
            {
                case '{':
                    return ParseObject(text, ref at, depth);
                case '[':
                    return ParseArray(text, ref at, depth);
                case '"':
                    return ParseString(text, ref at);
                case 't':
                    return ParseWord(text, ref at, "true", true);
                case 'f':
                    return ParseWord(text, ref at, "false", false);
                case 'n':
                    return ParseWord(text, ref at, "null", null);
                default:
                    Match number = Number.Match(text, at);
                    if (!number.Success) throw Unexpected(text, at);
                    at += number.Length;
                    return new JsonNumber(number.Value);
            }
        }

        private static object ParseObject(string text, ref int at, int depth)
        {
            var fields = new Dictionary<string, object>();
            at++;
            if (TakeIf(text, ref at, '}')) return fields;
            do
            {
                SkipSpace(text, ref at);
                string key = ParseString(text, ref at);
                if (!TakeIf(text, ref at, ':')) throw Unexpected(text, at);
                fields[key] = ParseValue(text, ref at, depth + 1);
            }
            while (TakeIf(text, ref at, ','));
            if (!TakeIf(text, ref at, '}')) throw Unexpected(text, at);
            return fields;
        }

        private static object ParseArray(string text, ref int at, int depth)
        {
            var items = new List<object>();
            at++;
            if (TakeIf(text, ref at, ']')) return items;
            do items.Add(ParseValue(text, ref at, depth + 1));
            while (TakeIf(text, ref at, ','));
            if (!TakeIf(text, ref at, ']')) throw Unexpected(text, at);
            return items;
        }

        private static string ParseString(string text, ref int at)
        {
            if (at >= text.Length || text[at] != '"') throw Unexpected(text, at);
            var value = new StringBuilder();
            for (at++; at < text.Length && text[at] >= ' '; at++)
            {
                if (text[at] == '"')
                {
                    at++;
                    return value.ToString();
                }
                value.Append(text[at] == '\\' ? ParseEscape(text, ref at) : text[at]);
            }
            throw Unexpected(text, at);
        }

        /// <summary>Leaves `at` on the escape's last character.</summary>
        private static char ParseEscape(string text, ref int at)
        {
            at++;
            int simple = at < text.Length ? "\"\\/bfnrt".IndexOf(text[at]) : -1;
            if (simple >= 0) return "\"\\/\b\f\n\r\t"[simple];
            ushort code;
            if (at + 4 >= text.Length || text[at] != 'u' || !ushort.TryParse(
                    text.Substring(at + 1, 4), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out code))
                throw Unexpected(text, at);
            at += 4;
            return (char)code;
        }

        private static object ParseWord(string text, ref int at, string word, object value)
        {
            if (string.CompareOrdinal(text, at, word, 0, word.Length) != 0) throw Unexpected(text, at);
            at += word.Length;
            return value;
        }

        private static bool TakeIf(string text, ref int at, char wanted)
        {
            SkipSpace(text, ref at);
            if (at >= text.Length || text[at] != wanted) return false;
            at++;
            return true;
        }

        private static void SkipSpace(string text, ref int at)
        {
            while (at < text.Length && " \t\r\n".IndexOf(text[at]) >= 0) at++;
        }

        private static FormatException Unexpected(string text, int at)
        {
            return new FormatException(
                at < text.Length ? $"unexpected character at place {at}" : "it ends too early");
        }
#endif
    }

    internal static class Wording
    {
        /// <summary>An exception's message on one line, without ONNX Runtime's prefix of code.</summary>
        public static string OneLine(Exception error)
        {
            string text = Printable(Regex.Replace(error.Message, @"\s+", " ").Trim());
            text = Regex.Replace(text, @"^\[ErrorCode:\w+\] ", "");
            return text.Length > 300 ? text.Substring(0, 300) : text;
        }

        /// <summary>Without what could move a terminal's cursor or start a new line.</summary>
        public static string Printable(string text)
        {
            return IsPrintable(text) ? text : new string(text.Select(c => c >= ' ' && c <= '~' ? c : '?').ToArray());
        }

        public static bool IsPrintable(string text)
        {
            for (int at = 0; at < text.Length; at += char.IsSurrogatePair(text, at) ? 2 : 1)
            {
                switch (CharUnicodeInfo.GetUnicodeCategory(text, at))
                {
                    case UnicodeCategory.Control:
                    case UnicodeCategory.Format:
                    case UnicodeCategory.Surrogate:
                    case UnicodeCategory.PrivateUse:
                    case UnicodeCategory.LineSeparator:
                    case UnicodeCategory.ParagraphSeparator:
                        return false;
                    case UnicodeCategory.SpaceSeparator:
                        if (text[at] != ' ') return false;
                        break;
                }
            }
            return true;
        }

        /// <summary>Whether it is a file name without any way out of its folder, on Linux and on Windows.</summary>
        public static bool IsPlainName(string name)
        {
            return name.Length > 0 && IsPrintable(name) && name != "." && name != ".."
                && name.IndexOfAny("/\\:*?\"<>|".ToCharArray()) < 0;
        }
    }
}
