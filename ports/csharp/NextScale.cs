// Pictures from a nextscale bundle, with ONNX Runtime (NuGet: Microsoft.ML.OnnxRuntime 1.23 or later, but not
// 1.29.0).
//
//     using (var generator = new Generator("path/to/bundle"))
//     {
//         Generation result = generator.Generate(new GenerationRequest(207) { Seed = 0 });
//         byte[] rgb = result.Images[0];  // result.Height rows of result.Width pixels of 3 bytes
//     }
//
// This file needs no other. C# 7.3, so that it compiles for .NET, .NET Framework, Unity and mono alike.
// The contract that it follows is docs/bundle.md; the same request gives the same tokens and bytes as in Python.

using System;
using System.Collections.Generic;
using System.Globalization;
using System.IO;
using System.Linq;
using System.Runtime.InteropServices;
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

    /// <summary>Which graphs run: the bundle's stock ones, of operators that every ONNX Runtime has, or the faster ones
    /// with fused operators, which need the library of nextscale-ops. A seed's tokens may differ between them.</summary>
    public enum Ops
    {
        /// <summary>The fused ones where the bundle has them, the library is given and fits, and it has more than plain
        /// C++ for this processor.</summary>
        Auto,
        Stock,
        Fused,
    }

    /// <summary>Which graphs run, and why.</summary>
    public sealed class Choice
    {
        internal Choice(bool fused, string reason)
        {
            Fused = fused;
            Reason = reason;
        }

        /// <summary>Whether those with fused operators run.</summary>
        public bool Fused { get; }

        /// <summary>In words for people.</summary>
        public string Reason { get; }
    }

    /// <summary>How the sessions of a bundle use the machine.</summary>
    public sealed class GeneratorOptions
    {
        /// <summary>Threads of one operator, to 1024; 0 takes one for each physical core that the process may run on,
        /// and no more than its control groups' quota of CPU time, rounded up.</summary>
        public int Threads { get; set; }

        /// <summary>Idle threads spin for a moment before they sleep: faster alone, slower on a busy machine. More
        /// threads than the CPUs that the process may use never spin.</summary>
        public bool Spinning { get; set; } = true;

        /// <summary>Keep freed memory for the next operator; without it a picture takes a quarter longer.</summary>
        public bool MemoryArena { get; set; } = true;

        /// <summary>Give memory back to the operating system after each call, for a process that lives long: without
        /// the arena, and with glibc also what the C library would keep.</summary>
        public bool ReturnMemory { get; set; }

        /// <summary>Plan one block of memory for each set of shapes; costs memory, gains no time here.</summary>
        public bool MemoryPattern { get; set; }

        /// <summary>Keep the text encoder loaded for the next prompts; without it, it is closed once the texts of a
        /// request are encoded, and its memory is free while the pictures are made.</summary>
        public bool KeepTextEncoder { get; set; } = true;

        public Ops Ops { get; set; } = Ops.Auto;

        /// <summary>The file of the library of nextscale-ops, such as libnextscale_ops.so; it is never looked for.
        /// </summary>
        public string OpsLibrary { get; set; }

        /// <summary>Of prompts, where the bundle's own is of another kind than "bytes"; null: prompts of such bundles
        /// are refused.</summary>
        public ITokenizer Tokenizer { get; set; }
    }

    /// <summary>What makes token ids of a prompt, as the model's text encoder was trained: for a bundle whose tokenizer
    /// is of the kind "sentencepiece", the pieces of its file in the bundle's folder.</summary>
    public interface ITokenizer
    {
        /// <summary>The ids of a prompt, without its end.</summary>
        IReadOnlyList<long> Encode(string prompt);
    }

    /// <summary>A scalar of a request: one value, or one for each stage where the bundle takes that. A number or an
    /// array of numbers becomes one by itself.</summary>
    public sealed class Scalar
    {
        public Scalar(params double[] values)
        {
            Values = values;
        }

        internal double[] Values { get; }

        public static implicit operator Scalar(double value) { return new Scalar(value); }

        public static implicit operator Scalar(double[] values) { return new Scalar(values); }
    }

    /// <summary>What images are to be guided away from: one text for all of them, or one for each. A text or an array
    /// of texts becomes one by itself.</summary>
    public sealed class Negative
    {
        /// <summary>One for each image.</summary>
        public Negative(params string[] texts)
        {
            Texts = texts;
        }

        /// <summary>One for all images; null where each has its own.</summary>
        internal string ForAll { get; private set; }

        internal string[] Texts { get; }

        public static implicit operator Negative(string text)
        {
            return text == null ? null : new Negative { ForAll = text };
        }

        public static implicit operator Negative(string[] texts)
        {
            return texts == null ? null : new Negative(texts);
        }
    }

    /// <summary>A tensor of the caller's, row-major, such as text features.</summary>
    public sealed class InputTensor
    {
        public InputTensor(float[] data, params long[] shape) : this("float32", data, shape) { }

        public InputTensor(long[] data, params long[] shape) : this("int64", data, shape) { }

        public InputTensor(int[] data, params long[] shape) : this("int32", data, shape) { }

        public InputTensor(sbyte[] data, params long[] shape) : this("int8", data, shape) { }

        public InputTensor(byte[] data, params long[] shape) : this("uint8", data, shape) { }

        private InputTensor(string dtype, Array data, long[] shape)
        {
            if (data == null) throw new ArgumentNullException(nameof(data));
            if (shape == null) throw new ArgumentNullException(nameof(shape));
            Dtype = dtype;
            Data = data;
            Shape = shape;
        }

        internal string Dtype { get; }

        internal Array Data { get; }

        internal long[] Shape { get; }
    }

    /// <summary>What to generate: one image for each class label or, where the bundle takes no classes, for each row
    /// of its tensors. What is left null has the bundle's default.</summary>
    public sealed class GenerationRequest
    {
        /// <param name="classLabels">Ids, as Bundle.ClassLabel gives for a name; num_classes is the null class.</param>
        public GenerationRequest(params long[] classLabels)
        {
            if (classLabels == null) throw new ArgumentNullException(nameof(classLabels));
            ClassLabels = classLabels;
        }

        /// <summary>[B], each 0 to num_classes; empty where the bundle takes no classes.</summary>
        public IReadOnlyList<long> ClassLabels { get; private set; }

        /// <summary>[B], where the bundle has a text encoder; null where their features are given, in Inputs or Texts.
        /// </summary>
        public IReadOnlyList<string> Prompts { get; set; }

        /// <summary>"" is as null: what the model learned for no text.</summary>
        public Negative Negative { get; set; }

        /// <summary>Of the pictures, such as "0.25M", where the bundle is built for several sizes; null: the first's.
        /// </summary>
        public string Area { get; set; }

        /// <summary>Width to height, such as "3:4", in the same way.</summary>
        public string Ratio { get; set; }

        /// <summary>The same seed gives the same pictures.</summary>
        public ulong Seed { get; set; }

        /// <summary>Image i of the result is image FirstImage + i of the seed, whatever the batch.</summary>
        public ulong FirstImage { get; set; }

        /// <summary>Guidance strength, at least 0; 0 is none.</summary>
        public Scalar CfgScale { get; set; }

        /// <summary>Keep the k likeliest tokens, 0 (off) to V; 1 is greedy.</summary>
        public Scalar TopK { get; set; }

        /// <summary>Keep the likeliest tokens of this probability mass, 0 (off) to 1.</summary>
        public Scalar TopP { get; set; }

        /// <summary>Temperature: logits are divided by it before sampling.</summary>
        public Scalar Tau { get; set; }

        /// <summary>Further scalars of the bundle, by name, and the index of a size.</summary>
        public IDictionary<string, Scalar> Scalars { get; } = new Dictionary<string, Scalar>();

        /// <summary>The bundle's inputs of other kinds, such as text features, by name.</summary>
        public IDictionary<string, InputTensor> Inputs { get; } = new Dictionary<string, InputTensor>();

        /// <summary>Features of texts that may differ in length, by name: float32 [N, Ct] for each image, which are
        /// padded and masked.</summary>
        public IDictionary<string, IReadOnlyList<InputTensor>> Texts { get; } =
            new Dictionary<string, IReadOnlyList<InputTensor>>();

        /// <summary>[B][L], or [B][L * d] where a token is a vector of d values such as bits: values to take instead of
        /// sampling, -1 to sample; null samples all.</summary>
        public long[][] ForcedTokens { get; set; }

        /// <summary>[B][L], or [B][L * d], numbers in [0, 1) instead of those of Seed and FirstImage.</summary>
        public float[][] Uniforms { get; set; }

        /// <summary>Take mixtures of codebook entries instead of single ones: for looks, not for metrics. Tokens are
        /// still sampled, and forced ones keep their entry.</summary>
        public bool MoreSmooth { get; set; }

        /// <summary>Images at a time; null is all at once.</summary>
        public int? BatchSize { get; set; }

        /// <summary>The same, which later changes of this one do not reach.</summary>
        internal GenerationRequest Copy()
        {
            return (GenerationRequest)MemberwiseClone();
        }

        /// <summary>The same of other labels.</summary>
        internal GenerationRequest OfLabels(params long[] labels)
        {
            GenerationRequest request = Copy();
            request.ClassLabels = labels;
            return request;
        }
    }

    /// <summary>Generated images.</summary>
    public sealed class Generation
    {
        internal Generation(byte[][] images, long[][] tokenMaps, ModelInfo model)
        {
            Images = images;
            TokenMaps = tokenMaps;
            Size = model.ImageSize;
        }

        /// <summary>H and W, in pixels.</summary>
        public HeightWidth Size { get; }

        /// <summary>H, in pixels.</summary>
        public int Height { get { return (int)Size.Height; } }

        /// <summary>W, in pixels.</summary>
        public int Width { get { return (int)Size.Width; } }

        /// <summary>[B], each H * W * 3 bytes: rows from the top, RGB.</summary>
        public byte[][] Images { get; }

        /// <summary>[B][L], or [B][L * d] where a token is a vector of d values such as bits; stages in order,
        /// row-major. A request's ForcedTokens are of the same form.</summary>
        public long[][] TokenMaps { get; }
    }

    /// <summary>One finished stage of a batch.</summary>
    public sealed class StageProgress
    {
        private readonly Generator generator;
        private readonly ModelInfo model;
        private readonly float[] latent;

        internal StageProgress(
            Generator generator, ModelInfo model, int stage, int first, long[][] tokens, float[] latent)
        {
            this.generator = generator;
            this.model = model;
            this.latent = latent;
            Stage = stage;
            First = first;
            Tokens = tokens;
        }

        /// <summary>Index of the stage, from 0.</summary>
        public int Stage { get; }

        /// <summary>Stages of an image.</summary>
        public int NumStages { get { return model.NumStages; } }

        /// <summary>Position of the batch's first image in the request.</summary>
        public int First { get; }

        /// <summary>H of a preview, in pixels.</summary>
        public int Height { get { return (int)model.ImageSize.Height; } }

        /// <summary>W of a preview, in pixels.</summary>
        public int Width { get { return (int)model.ImageSize.Width; } }

        /// <summary>[B][l], or [B][l * d], the tokens taken at this stage.</summary>
        public long[][] Tokens { get; }

        /// <summary>Decode the pictures as they are after this stage, as in Generation.Images. May be called at any
        /// time and on any thread until the generator is disposed; costs one run of the decoder.</summary>
        public byte[][] Preview()
        {
            return generator.Decode(latent, Tokens.Length, model);
        }
    }

    /// <summary>Generates pictures from a bundle. Graphs are loaded when first needed. One generator serves several
    /// threads at the same time: a call keeps its state to itself.</summary>
    public sealed class Generator : IDisposable
    {
        private static readonly string[] GenerateOutputs = { "images", "token_maps" };
        private static readonly string[] DecoderOutputs = { "images" };
        private static readonly string[] EncoderOutputs = { "token_maps" };
        private static readonly string[] TextEncoderOutputs = { "text_features" };
        private const int Shown = 8;  // sizes in an error

        private readonly GeneratorOptions options;
        private readonly Dictionary<string, InferenceSession> sessions = new Dictionary<string, InferenceSession>();
        private int encoding;  // calls that run the text encoder
        private readonly object loading = new object();
        private readonly object counting = new object();
        private int running;
        private bool disposed;

        /// <param name="folder">A bundle made by `nextscale build`.</param>
        /// <param name="options">Threads and memory; null takes the defaults.</param>
        /// <exception cref="BundleException">The folder holds no usable bundle.</exception>
        /// <exception cref="NextScaleException">An option is out of range, OpsLibrary is no library of operators, or
        /// fused graphs are asked for that cannot run.</exception>
        public Generator(string folder, GeneratorOptions options = null) : this(Bundle.Open(folder), options) { }

        public Generator(Bundle bundle, GeneratorOptions options = null)
        {
            Bundle = bundle;
            this.options = options ?? new GeneratorOptions();
            if (this.options.Threads < 0 || this.options.Threads > 1024)
                throw new NextScaleException(
                    $"threads {this.options.Threads} is out of range: expected 1 to 1024, or 0 for all cores");
            Ops = OperatorLibrary.Choose(bundle, this.options);
        }

        public Bundle Bundle { get; }

        /// <summary>Which graphs run, as options, bundle and library have decided.</summary>
        public Choice Ops { get; }

        /// <summary>Load "generate", or "stage" and "decoder", with "text_encoder" for prompts, or "encoder", now
        /// instead of at the first use.</summary>
        /// <exception cref="BundleException">The bundle has no such graph, ONNX Runtime cannot load it, or it is not
        /// the manifest's.</exception>
        /// <exception cref="NextScaleException">ONNX Runtime is missing or too old.</exception>
        public void Load(params string[] graphs)
        {
            Using(() =>
            {
                foreach (string graph in graphs) Session(graph);
                return true;
            });
        }

        /// <summary>Generate the images of the request.
        ///
        /// One call of generate.onnx for each batch; with a progress or a token that can be cancelled, or where the
        /// bundle has no generate.onnx, one call of stage.onnx for each stage, which gives the same tokens.</summary>
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
            return Generate(ModelInputs.Create(Bundle, request, options.Tokenizer), progress, cancellation);
        }

        private Generation Generate(
            ModelInputs all, IProgress<StageProgress> progress, CancellationToken cancellation)
        {
            bool streaming = progress != null || cancellation.CanBeCanceled || !Bundle.Graphs.ContainsKey("generate");
            return Using(() =>
            {
                EncodeTexts(all);
                var images = new List<byte[]>();
                var tokenMaps = new List<long[]>();
                for (int first = 0; first < all.Count; first += all.BatchSize)
                {
                    ModelInputs part = all.Images(first, Math.Min(all.BatchSize, all.Count - first));
                    Generation made = streaming
                        ? GenerateStaged(part, first, progress, cancellation)
                        : GenerateAtOnce(part);
                    images.AddRange(made.Images);
                    tokenMaps.AddRange(made.TokenMaps);
                }
                return new Generation(images.ToArray(), tokenMaps.ToArray(), all.Manifest.Model);
            });
        }

        /// <summary>Generate on another thread; see Generate. The request is checked and copied at the call, and what is
        /// wrong with it comes with the task.</summary>
        public Task<Generation> GenerateAsync(
            GenerationRequest request,
            IProgress<StageProgress> progress = null,
            CancellationToken cancellation = default(CancellationToken))
        {
            ModelInputs all;
            try
            {
                all = ModelInputs.Create(Bundle, request, options.Tokenizer);
            }
            catch (NextScaleException error)
            {
                return Task.FromException<Generation>(error);
            }
            return Task.Run(() => Generate(all, progress, cancellation), cancellation);
        }

        /// <summary>The token maps of pictures, as in Generation.TokenMaps, with a bundle of one size.</summary>
        /// <param name="images">[B], as in Generation.Images.</param>
        /// <exception cref="RequestException">A picture of another size, or none at all; or the bundle is built for
        /// several sizes.</exception>
        /// <exception cref="BundleException">The bundle has no encoder, or it cannot be loaded.</exception>
        public long[][] Encode(params byte[][] images)
        {
            return Encode(SizeOf(null), images);
        }

        /// <summary>The token maps of pictures of one of the sizes that the bundle is built for.</summary>
        /// <param name="size">H and W of the pictures, as Generation.Size.</param>
        /// <param name="images">As above.</param>
        public long[][] Encode(HeightWidth size, params byte[][] images)
        {
            if (images == null) throw new ArgumentNullException(nameof(images));
            if (!Bundle.Graphs.ContainsKey("encoder"))
                throw new BundleException(
                    $"{Bundle.Folder}: the bundle has no encoder; build it again, without --no-encoder");
            int index = IndexOf(size);
            if (index < 0)
                throw new RequestException(
                    $"images: expected uint8 {Shapes("B, ")}, found uint8 [{images.Length}, {size.Height}, {size.Width}, 3]");
            Manifest sized = Bundle.OfSize(index);
            foreach (byte[] image in images)
                if (image == null || image.LongLength != sized.Model.ImageBytes)
                    throw new RequestException(
                        $"images: expected uint8 {Shapes("B, ")}, found a picture of {image?.LongLength ?? 0} bytes");
            if (images.Length == 0) throw new RequestException("images is empty: expected at least one picture");
            byte[] pixels = images.SelectMany(image => image).ToArray();
            return Using(() =>
            {
                Session("encoder");
                using (var feeds = new Feeds(images.Length))
                {
                    feeds.Add("images", pixels, new[] { images.Length, size.Height, size.Width, 3 });
                    RequestInput item = sized.InputOfKind("size");
                    if (item != null) feeds.Add(item.Name, new long[] { index }, new long[0]);
                    return Run("encoder", feeds.Values, EncoderOutputs, outputs => Integers(
                        outputs[0], images.Length, sized.InputOfKind("forced_tokens").RowValues));
                }
            });
        }

        /// <summary>Make parts of a picture anew. It is encoded; tokens outside the mask are kept at each stage, the
        /// others are sampled. Of the result the pixels outside the mask are the picture's own, exactly.</summary>
        /// <param name="image">A picture of a size that the bundle is built for, as in Generation.Images.</param>
        /// <param name="mask">[H, W], true where pixels are made anew; null: everywhere.</param>
        /// <param name="request">How, and a class label or a prompt for each result; no label makes one of no class. It
        /// has no ForcedTokens, and no size.</param>
        /// <param name="keepStages">Tokens of so many first stages are kept within the mask too: what remains of the
        /// picture's layout and colours.</param>
        /// <param name="feather">Width in pixels of the seam within the mask, where the picture becomes the new one;
        /// null: a quarter of what one position of the latent covers; -1: no blending, the decoder's picture.</param>
        /// <param name="progress">As for Generate.</param>
        /// <param name="cancellation">As for Generate.</param>
        /// <param name="size">H and W of the picture, as Generation.Size; needed where the bundle is built for several.
        /// </param>
        /// <exception cref="RequestException">What Generate refuses, a picture or a mask of another size, an empty
        /// mask, keepStages or feather out of range.</exception>
        /// <exception cref="BundleException">The bundle has no encoder, or a graph cannot be loaded.</exception>
        public Generation Edit(
            byte[] image,
            bool[,] mask = null,
            GenerationRequest request = null,
            int keepStages = 0,
            int? feather = null,
            IProgress<StageProgress> progress = null,
            CancellationToken cancellation = default(CancellationToken),
            HeightWidth? size = null)
        {
            if (image == null) throw new ArgumentNullException(nameof(image));
            request = request ?? new GenerationRequest();
            if (request.ForcedTokens != null)
                throw new RequestException("forced_tokens: an edit forces those that the picture and the mask say");
            HeightWidth own = SizeOf(size);
            int index = IndexOfEdit(own, request);
            ModelInfo model = Bundle.OfSize(index).Model;
            if (mask != null) Mask.Require(mask, model.ImageSize);
            if (keepStages < 0 || keepStages >= model.NumStages)
                throw new RequestException(
                    $"keep_stages {keepStages} is out of range: expected 0 to {model.NumStages - 1}");
            long seam = feather ?? model.ImageSize.Height / model.LatentSize.Height / 4;
            long widest = Math.Max(model.ImageSize.Height, model.ImageSize.Width);
            if (seam < -1 || seam > widest)
                throw new RequestException($"feather {seam} is out of range: expected -1 to {widest}");
            bool[] kept = mask == null
                ? new bool[model.NumTokens] : Mask.KeptTokens(Mask.Latent(mask, model.LatentSize), model.StageSizes);
            long begin = model.StageSizes.Take(keepStages).Sum(stage => stage.Height * stage.Width);
            for (long i = 0; i < begin; i++) kept[i] = true;
            if (request.ClassLabels.Count == 0 && Bundle.InputOfKind("label") != null)
                request = request.OfLabels(model.NumClasses);
            ModelInputs inputs = ModelInputs.Create(Bundle, request, options.Tokenizer, index);
            long[] tokens = Encode(own, image)[0];
            int values = tokens.Length / kept.Length;  // of one token
            inputs.Force(tokens.Select((token, i) => kept[i / values] ? token : -1).ToArray());
            Generation made = Generate(inputs, progress, cancellation);
            if (mask != null && seam >= 0) Mask.Blend(image, made.Images, mask, (int)seam);
            return made;
        }

        /// <summary>The size of pictures that come without one.</summary>
        private HeightWidth SizeOf(HeightWidth? size)
        {
            if (size == null && Bundle.Sizes.Count > 0)
                throw new RequestException(
                    "size: this bundle is built for several; give height and width of the picture");
            return size ?? Bundle.Model.ImageSize;
        }

        /// <summary>The index of the size of pictures; -1: the bundle is not built for it.</summary>
        private int IndexOf(HeightWidth size)
        {
            return Bundle.Models.ToList().FindIndex(model => model.ImageSize.Equals(size));
        }

        /// <summary>The index of the size of a picture that is edited.</summary>
        private int IndexOfEdit(HeightWidth size, GenerationRequest request)
        {
            RequestInput item = Bundle.InputOfKind("size");
            int index = IndexOf(size);
            if (item == null) return 0;
            string told = request.Area != null ? "area" : request.Ratio != null ? "ratio"
                : request.Scalars.ContainsKey(item.Name) ? item.Name : null;
            if (told != null)
                throw new RequestException($"{told}: an edit has the size of its picture; leave it out");
            if (index < 0)
                throw new RequestException(
                    $"image: expected uint8 {Shapes("")}, found uint8 [{size.Height}, {size.Width}, 3]");
            return index;
        }

        /// <summary>The shapes that pictures may have: one, or one of each size.</summary>
        private string Shapes(string batch)
        {
            List<string> shapes = Bundle.Models.Select(
                model => $"[{batch}{model.ImageSize.Height}, {model.ImageSize.Width}, 3]").ToList();
            int others = shapes.Count - Shown;
            return string.Join(" or ", others > 0 ? shapes.Take(Shown).Concat(new[] { $"{others} others" }) : shapes);
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
        /// <param name="model">Of the latent's size.</param>
        internal byte[][] Decode(float[] latent, int count, ModelInfo model)
        {
            return Using(() =>
            {
                Session("decoder");
                HeightWidth size = model.LatentSize;
                long[] shape = { count, model.LatentChannels, size.Height, size.Width };
                using (OrtValue value = OrtValue.CreateTensorValueFromMemory(latent, shape))
                    return Decode(value, count, model);
            });
        }

        private byte[][] Decode(OrtValue latent, int count, ModelInfo model)
        {
            return Run("decoder", new Dictionary<string, OrtValue> { { "f_hat", latent } }, DecoderOutputs,
                       outputs => Bytes(outputs[0], count, model.ImageBytes));
        }

        /// <summary>Run the text encoder on each text of a request. The last of the calls that do closes it, if it is
        /// not kept.</summary>
        private void EncodeTexts(ModelInputs all)
        {
            lock (loading) encoding++;
            try
            {
                all.EncodeTexts(EncodeText);
            }
            finally
            {
                lock (loading)
                {
                    InferenceSession session;
                    if (--encoding == 0 && !options.KeepTextEncoder
                        && sessions.TryGetValue("text_encoder", out session))
                    {
                        sessions.Remove("text_encoder");
                        session.Dispose();
                    }
                }
            }
        }

        /// <summary>The features of one text, [N] -> [N * Ct].</summary>
        private float[] EncodeText(long[] tokenIds, long width)
        {
            Session("text_encoder");
            using (var feeds = new Feeds(1))
            {
                feeds.Add("token_ids", tokenIds, new[] { 1L, tokenIds.Length });
                return Run("text_encoder", feeds.Values, TextEncoderOutputs,
                           outputs => Floats(outputs[0], tokenIds.Length * width));
            }
        }

        private Generation GenerateAtOnce(ModelInputs inputs)
        {
            Session("generate");
            ModelInfo model = inputs.Manifest.Model;
            using (var feeds = new Feeds(inputs, Bundle.Graph("generate")))
            {
                return Run("generate", feeds.Values, GenerateOutputs, outputs => new Generation(
                    Bytes(outputs[0], inputs.Count, model.ImageBytes),
                    Integers(outputs[1], inputs.Count, inputs.Manifest.InputOfKind("forced_tokens").RowValues), model));
            }
        }

        /// <summary>Run the stages; the state stays in ONNX Runtime's tensors, each stage's outputs being the next
        /// one's inputs.</summary>
        private Generation GenerateStaged(
            ModelInputs inputs, int first, IProgress<StageProgress> progress, CancellationToken cancellation)
        {
            ModelInfo model = inputs.Manifest.Model;
            IReadOnlyList<StateInfo> state = inputs.Manifest.Graphs["stage"].State;
            int latentAt = 1 + state.ToList().FindIndex(item => item.Input == "f_hat");
            string[] names = new[] { "tokens" }.Concat(state.Select(item => item.Output)).ToArray();
            long values = inputs.Manifest.InputOfKind("forced_tokens").RowValues;
            long valuesOfToken = values / model.NumTokens;
            long[][] tokenMaps = Enumerable.Range(0, inputs.Count).Select(_ => new long[values]).ToArray();
            var stageIndex = new long[1];
            IDisposableReadOnlyCollection<OrtValue> current = null;
            ThrowIfCancelled(cancellation, 0, model.NumStages);
            Session("stage");
            using (var feeds = new Feeds(inputs, Bundle.Graph("stage")))
            {
                try
                {
                    feeds.Add("stage", stageIndex, new long[0]);
                    foreach (StateInfo item in state) feeds.AddZeros(item);
                    int begin = 0;
                    for (int stage = 0; stage < model.NumStages; stage++)
                    {
                        stageIndex[0] = stage;
                        IDisposableReadOnlyCollection<OrtValue> next = Run("stage", feeds.Values, names);
                        current?.Dispose();
                        current = next;
                        for (int i = 0; i < state.Count; i++) feeds.Values[state[i].Input] = current.ElementAt(i + 1);
                        HeightWidth size = model.StageSizes[stage];
                        var length = (int)(size.Height * size.Width * valuesOfToken);
                        long[][] tokens = Integers(current.First(), inputs.Count, length);
                        for (int i = 0; i < inputs.Count; i++) tokens[i].CopyTo(tokenMaps[i], begin);
                        begin += length;
                        if (progress != null)
                        {
                            float[] latent = Floats(current.ElementAt(latentAt), model.LatentLength(inputs.Count));
                            progress.Report(new StageProgress(this, model, stage, first, tokens, latent));
                        }
                        ThrowIfCancelled(cancellation, stage + 1, model.NumStages);
                    }
                    return new Generation(Decode(current.ElementAt(latentAt), inputs.Count, model), tokenMaps, model);
                }
                finally
                {
                    current?.Dispose();
                }
            }
        }

        private static void ThrowIfCancelled(CancellationToken cancellation, int done, int numStages)
        {
            if (cancellation.IsCancellationRequested)
                throw new OperationCanceledException(
                    $"cancelled after {done} of {numStages} stages", cancellation);
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
                    $"{Bundle.GraphPath(graph, Ops.Fused)}: onnxruntime failed: {Wording.OneLine(error)}", error);
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
                    sessions[graph] = session = SessionLoader.Open(Bundle, graph, options, Ops.Fused);
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
                if (options.ReturnMemory) FreedMemory.Return();
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

    /// <summary>A folder whose manifest was read and whose files all have the size that the manifest gives, but for its
    /// card. A file that is a link out of the folder, as in a download cache, also has the sha256 that the manifest
    /// gives.</summary>
    public sealed class Bundle
    {
        private const string ManifestName = "manifest.json";
        private const string CardName = "card.md";  // for people: whether a bundle runs does not depend on it
        private const string NullClass = "null";
        private const int ManifestLimit = 32 << 20;  // bytes; a real one is below 1 MB
        private const int Shown = 8;
        // Names beyond so many letters in all, and texts longer than any name that a person types, are not compared.
        private const int Compared = 1 << 17, LongestCompared = 100;

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

        /// <summary>Where there are several sizes, that of the first.</summary>
        public ModelInfo Model { get { return manifest.Model; } }

        /// <summary>Those that the bundle is built for; none where it has one, the model's.</summary>
        public IReadOnlyList<SizeInfo> Sizes { get { return manifest.Sizes; } }

        /// <summary>The model at each size.</summary>
        public IReadOnlyList<ModelInfo> Models { get { return manifest.Models; } }

        /// <summary>A name for each class, or null.</summary>
        public IReadOnlyList<string> ClassNames { get { return manifest.ClassNames; } }

        /// <summary>By role: "stage" and "decoder", and the others where the bundle has them.</summary>
        internal IReadOnlyDictionary<string, GraphInfo> Graphs { get { return manifest.Graphs; } }

        /// <summary>How prompts become token ids; null where the bundle has no tokenizer.</summary>
        internal TokenizerInfo Tokenizer { get { return manifest.Tokenizer; } }

        /// <summary>What the manifest says of one size, with numbers for the symbols that it decides.</summary>
        internal Manifest OfSize(int index)
        {
            return manifest.OfSize(index);
        }

        /// <summary>The request's input of a kind; null where it has none.</summary>
        internal RequestInput InputOfKind(string kind)
        {
            return manifest.InputOfKind(kind);
        }

        /// <exception cref="BundleException">The bundle has no such graph.</exception>
        internal GraphInfo Graph(string role)
        {
            GraphInfo graph;
            if (role == null || !Graphs.TryGetValue(role, out graph))
                throw new BundleException(
                    $"{Folder}: the bundle has no graph \"{Wording.Printable(role ?? "null")}\"; it has "
                    + string.Join(", ", Manifest.Roles.Where(Graphs.ContainsKey)));
            return graph;
        }

        /// <summary>Read a bundle's manifest and check its files.</summary>
        /// <param name="verifyHashes">Also read every file and compare its sha256.</param>
        /// <exception cref="BundleException">No bundle there, or one that is damaged, newer, or has a link to a
        /// file that is not the manifest's.</exception>
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
                if (Sha256(path) != file.Value.Sha256.ToUpperInvariant())
                    throw new BundleException(
                        $"{path}: the content was changed (sha256 differs from the manifest's); "
                        + "copy or build the bundle again");
            }
        }

        private static string Sha256(string path)
        {
            try
            {
                using (SHA256 sha256 = SHA256.Create())
                using (FileStream stream = File.OpenRead(path))
                    return BitConverter.ToString(sha256.ComputeHash(stream)).Replace("-", "");
            }
            catch (Exception error) when (error is FileNotFoundException || error is DirectoryNotFoundException)
            {
                throw Missing(path);
            }
            catch (Exception error) when (error is IOException || error is UnauthorizedAccessException)
            {
                throw new BundleException($"{path}: cannot be read: {Wording.OneLine(error)}", error);
            }
        }

        private static BundleException Missing(string path)
        {
            return new BundleException($"{path}: the file is missing; copy or build the bundle again");
        }

        /// <summary>The id of a class.</summary>
        /// <param name="name">An id in digits, or a class name in any case. Where names list synonyms separated by
        /// commas, each synonym is a name. "null", where no class is named so, is the null class.</param>
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
                    $"class {digits.Substring(0, 18)}... is out of range: expected {Model.LabelRange}");
            return ClassLabel(label);
        }

        /// <summary>The same id, checked.</summary>
        /// <exception cref="ClassLabelException">The id is out of range.</exception>
        public long ClassLabel(long label)
        {
            return Model.RequireLabel(label);
        }

        /// <summary>The ONNX file of a graph's variant: of the stock one where it has no other.</summary>
        internal string GraphPath(string graph, bool fused)
        {
            GraphInfo info = Graph(graph);
            return Path.Combine(Folder, fused && info.Fused != null ? info.Fused.File : info.File);
        }

        private long LabelOfName(string name)
        {
            string wanted = Folded(name);
            string[] folded = (ClassNames ?? new string[0]).Select(Folded).ToArray();
            List<int> labels = Enumerable.Range(0, folded.Length).ToList();
            List<int> found = labels.FindAll(label => folded[label] == wanted);
            if (found.Count == 0)
                found = labels.FindAll(
                    label => folded[label].Contains(wanted) && Synonyms(folded[label]).Contains(wanted));
            if (found.Count == 1) return found[0];
            if (found.Count > 1)
                throw new ClassLabelException(
                    $"class \"{Wording.Printable(name)}\" is the name of {found.Count} classes: give an id of "
                    + string.Join(", ", found.Take(Shown).Select(label => $"{label} ({ClassNames[label]})")));
            if (wanted == NullClass) return Model.NumClasses;
            if (ClassNames == null)
                throw new ClassLabelException(
                    $"class \"{Wording.Printable(name)}\": this bundle has no class names; "
                    + $"give an id from 0 to {Model.NumClasses - 1}");
            throw new ClassLabelException(
                $"no class is named \"{Wording.Printable(name)}\"; {Suggestion(wanted, folded)}");
        }

        /// <summary>The nearest names: those that contain the wanted text, then those spelled most like it.</summary>
        private static string Suggestion(string wanted, string[] folded)
        {
            var nearest = new Dictionary<string, int>();
            for (int label = 0; label < folded.Length && nearest.Count < Shown; label++)
            {
                if (wanted.Length == 0 || !folded[label].Contains(wanted)) continue;
                string[] parts = Synonyms(folded[label]).Where(part => part.Contains(wanted)).ToArray();
                foreach (string part in parts.Length > 0 ? parts : new[] { folded[label] })
                    if (!nearest.ContainsKey(part)) nearest[part] = label;
            }
            foreach (KeyValuePair<string, int> item in SpelledLike(wanted, folded))
                if (!nearest.ContainsKey(item.Key)) nearest[item.Key] = item.Value;
            return nearest.Count > 0
                ? "nearest: " + string.Join(", ", nearest.Take(Shown).Select(item => $"{item.Key} ({item.Value})"))
                : "`nextscale inspect DIR --classes` lists the names";
        }

        /// <summary>Synonyms that a few edits turn into the wanted text, the nearest first.</summary>
        private static IEnumerable<KeyValuePair<string, int>> SpelledLike(string wanted, string[] folded)
        {
            var known = new Dictionary<string, int>();
            int allowed = wanted.Length / 3, left = wanted.Length <= LongestCompared ? Compared : 0;
            for (int label = 0; label < folded.Length && left > 0; label++)
                foreach (string part in Synonyms(folded[label]))
                    if (Math.Abs(part.Length - wanted.Length) <= allowed)
                    {
                        left -= part.Length + 1;
                        if (!known.ContainsKey(part)) known[part] = label;
                    }
            return known.Select(item => new { item, distance = EditDistance(item.Key, wanted) })
                .Where(found => found.distance <= allowed && wanted.Length > 0)
                .OrderBy(found => found.distance).ThenBy(found => found.item.Value)
                .Select(found => found.item);
        }

        private static string[] Synonyms(string folded)
        {
            return folded.Split(',').Select(part => part.Trim()).ToArray();
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
            bool linked = LeavesFolder(file);
            long? length = linked ? LinkedLength(file.ToString()) : file.Exists ? file.Length : (long?)null;
            if (name == CardName && !(linked && length != null)) return;
            if (length == null) throw Missing(file.ToString());
            if (length != entry.Size)
                throw new BundleException(
                    $"{file}: {length} bytes, but the manifest says {entry.Size}: the file was truncated or "
                    + "changed; copy or build the bundle again");
            if (linked && Sha256(file.ToString()) != entry.Sha256.ToUpperInvariant())
                throw new BundleException(
                    $"{file}: a link out of the bundle's folder, to another content than the manifest's (sha256 "
                    + "differs); download or copy the bundle again");
        }

        /// <summary>The length of what a link leads to; null where that is no file.</summary>
        private static long? LinkedLength(string path)
        {
            try
            {
                using (FileStream stream = File.OpenRead(path)) return stream.Length;
            }
            catch (Exception error) when (error is IOException || error is UnauthorizedAccessException
                                          || error is NotSupportedException)
            {
                return null;
            }
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

    /// <summary>A size: rows and columns.</summary>
    public struct HeightWidth
    {
        public HeightWidth(long height, long width)
        {
            Height = height;
            Width = width;
        }

        public long Height { get; }

        public long Width { get; }
    }

    /// <summary>One size that a bundle is built for.</summary>
    public sealed class SizeInfo
    {
        internal SizeInfo(
            string area, HeightWidth ratio, HeightWidth imageSize, HeightWidth latentSize,
            IReadOnlyList<HeightWidth> stageSizes)
        {
            Area = area;
            Ratio = ratio;
            ImageSize = imageSize;
            LatentSize = latentSize;
            StageSizes = stageSizes;
        }

        /// <summary>About how many pixels, such as "0.25M".</summary>
        public string Area { get; }

        /// <summary>Of height to width, in lowest terms.</summary>
        public HeightWidth Ratio { get; }

        /// <summary>H and W, in pixels.</summary>
        public HeightWidth ImageSize { get; }

        /// <summary>Tokens of each stage's token map.</summary>
        public IReadOnlyList<HeightWidth> StageSizes { get; }

        /// <summary>Width to height, as people say it: "3:4" is a portrait.</summary>
        public string RatioInWords { get { return $"{Ratio.Width}:{Ratio.Height}"; } }

        internal HeightWidth LatentSize { get; }

        /// <summary>The area as a number: "0.6M" and "0.60M" are one.</summary>
        internal double Megapixels { get { return MegapixelsOf(Area).Value; } }

        /// <summary>Digits, perhaps a point and digits, and "M": the number before the "M"; null of anything else.
        /// </summary>
        internal static double? MegapixelsOf(string area)
        {
            if (!Regex.IsMatch(area, @"\A[0-9]{1,6}(\.[0-9]{1,6})?M\z")) return null;
            return double.Parse(area.TrimEnd('M'), NumberStyles.Float, CultureInfo.InvariantCulture);
        }

        /// <summary>The index of the size of that area and ratio; what is null is that of the first size.</summary>
        /// <exception cref="RequestException">Another form, or a size that was not built.</exception>
        internal static int Choose(IReadOnlyList<SizeInfo> sizes, string area, string ratio)
        {
            double wanted = area == null ? sizes[0].Megapixels : ReadArea(area);
            HeightWidth sides = ratio == null ? sizes[0].Ratio : ReadRatio(ratio);
            for (int index = 0; index < sizes.Count; index++)
                if (sizes[index].Megapixels.Equals(wanted) && sizes[index].Ratio.Equals(sides)) return index;
            IEnumerable<string> built = sizes.GroupBy(size => size.Area).Select(
                group => $"{group.Key} {string.Join(" ", group.Select(size => size.RatioInWords))}");
            string number = wanted.ToString("g6", CultureInfo.InvariantCulture);
            throw new RequestException(
                $"area {number}M with ratio {sides.Width}:{sides.Height} is not built; this bundle has "
                + string.Join("; ", built));
        }

        /// <summary>The greatest common divisor.</summary>
        internal static long Common(long a, long b)
        {
            while (b != 0)
            {
                long rest = a % b;
                a = b;
                b = rest;
            }
            return a;
        }

        private static double ReadArea(string area)
        {
            double? number = MegapixelsOf(area);
            if (number == null)
                throw new RequestException(
                    $"area \"{Wording.Shown(area)}\": expected megapixels such as \"0.25M\"");
            return number.Value;
        }

        private static HeightWidth ReadRatio(string ratio)
        {
            Match match = Regex.Match(ratio, @"\A([0-9]{1,9}):([0-9]{1,9})\z");
            long width = 0, height = 0;
            if (match.Success)
            {
                width = long.Parse(match.Groups[1].Value, CultureInfo.InvariantCulture);
                height = long.Parse(match.Groups[2].Value, CultureInfo.InvariantCulture);
            }
            if (width == 0 || height == 0)
                throw new RequestException(
                    $"ratio \"{Wording.Shown(ratio)}\": expected width to height such as \"3:4\"");
            long common = Common(height, width);
            return new HeightWidth(height / common, width / common);
        }
    }

    /// <summary>The sizes of the model; symbols as in docs/bundle.md.</summary>
    public sealed class ModelInfo
    {
        private const long Largest = 1 << 20;  // a side beyond this is no array's

        internal ModelInfo(
            Fields fields, int minimumClasses, IReadOnlyList<HeightWidth> stageSizes, HeightWidth imageSize,
            HeightWidth latentSize)
        {
            StageSizes = stageSizes;
            ImageSize = imageSize;
            LatentSize = latentSize;
            NumClasses = fields.Integer("num_classes", minimumClasses);
            VocabSize = fields.Integer("vocab_size", 1);
            foreach (string key in new[] { "depth", "embed_dim", "num_heads" }) fields.Integer(key, 1);
            LatentChannels = fields.Integer("latent_channels", 1);
        }

        /// <summary>The same model where it makes pictures of another size.</summary>
        internal ModelInfo OfSize(SizeInfo size)
        {
            var model = (ModelInfo)MemberwiseClone();
            model.StageSizes = size.StageSizes;
            model.ImageSize = size.ImageSize;
            model.LatentSize = size.LatentSize;
            return model;
        }

        /// <summary>What the size decides, by its symbol in shapes.</summary>
        internal Dictionary<string, long> Symbols
        {
            get
            {
                return new Dictionary<string, long>
                {
                    { "L", NumTokens }, { "S", NumStages }, { "h", LatentSize.Height }, { "w", LatentSize.Width },
                    { "H", ImageSize.Height }, { "W", ImageSize.Width },
                };
            }
        }

        /// <summary>0 where the model has no classes.</summary>
        public long NumClasses { get; }

        /// <summary>Tokens of each stage's token map.</summary>
        public IReadOnlyList<HeightWidth> StageSizes { get; private set; }

        /// <summary>H and W, in pixels.</summary>
        public HeightWidth ImageSize { get; private set; }

        /// <summary>V, the values that an entry of a token map may have; 2 where tokens are bits.</summary>
        public long VocabSize { get; }

        public int NumStages { get { return StageSizes.Count; } }

        /// <summary>L, the tokens of all stages.</summary>
        public long NumTokens { get { return StageSizes.Sum(size => size.Height * size.Width); } }

        internal long LatentChannels { get; }

        internal HeightWidth LatentSize { get; private set; }

        internal string LabelRange { get { return $"0 to {NumClasses - 1} ({NumClasses} is the null class)"; } }

        /// <exception cref="ClassLabelException">The id is out of range.</exception>
        internal long RequireLabel(long label)
        {
            if (label < 0 || label > NumClasses)
                throw new ClassLabelException($"class {label} is out of range: expected {LabelRange}");
            return label;
        }

        /// <summary>-1 where that is beyond any array: sizes come from an untrusted file.</summary>
        internal long ImageBytes
        {
            get { return IsSmall(ImageSize) ? ImageSize.Height * ImageSize.Width * 3 : -1; }
        }

        /// <summary>Elements of so many images' f_hat; -1 as for ImageBytes.</summary>
        internal long LatentLength(int count)
        {
            long area = IsSmall(LatentSize) ? LatentSize.Height * LatentSize.Width : long.MaxValue;
            return LatentChannels <= int.MaxValue / area ? count * LatentChannels * area : -1;
        }

        private static bool IsSmall(HeightWidth size)
        {
            return size.Height < Largest && size.Width < Largest;
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

        /// <summary>Numbers in [0, 1) of one image, which depend on (seed, image) and their use alone: one for each
        /// token to sample, V for each to smooth.
        ///
        /// Number t is word t % 4 of Philox4x32-10 with key (low, high half of the seed) and counter
        /// (t / 4, low, high half of the image, use), as (word >> 8) * 2^-24.</summary>
        public static float[] OfImage(ulong seed, ulong image, int length, NumberUse use = NumberUse.Sampling)
        {
            var numbers = new float[length];
            var words = new uint[4];
            for (int t = 0; t < length; t++)
            {
                if (t % 4 == 0)
                {
                    words[0] = (uint)(t / 4);
                    words[1] = unchecked((uint)image);
                    words[2] = (uint)(image >> 32);
                    words[3] = (uint)use;
                    Philox4x32(words, unchecked((uint)seed), (uint)(seed >> 32));
                }
                numbers[t] = (words[t % 4] >> 8) * (1f / (1 << 24));
            }
            return numbers;
        }
    }

    /// <summary>What numbers are for; no two uses share any.</summary>
    public enum NumberUse
    {
        Sampling = 0,
        Smoothing = 1,
    }

    /// <summary>Masks of pixels, [H, W], true where a picture is made anew, and what becomes of them: kept tokens, and
    /// the new picture within the old one. All in whole numbers, or in floats in a stated order, so that other
    /// languages find the same tokens and bytes.</summary>
    public static class Mask
    {
        // Where a stage has no more tokens than this, all are kept (VAR's notebook of zero-shot editing).
        private const int FewTokens = 3;

        /// <summary>What is within y0, x0, y1, x1, shares of the picture's height and width. Ends are rounded to
        /// positions of the model's latent, halves to even.</summary>
        /// <param name="outside">All but what is within.</param>
        /// <exception cref="RequestException">The box is not within the picture, or has no position.</exception>
        public static bool[,] Box(
            ModelInfo model, double y0, double x0, double y1, double x1, bool outside = false)
        {
            if (model == null) throw new ArgumentNullException(nameof(model));
            string box = "box " + string.Join(",", new[] { y0, x0, y1, x1 }.Select(Short));
            if (!(0 <= y0 && y0 < y1 && y1 <= 1 && 0 <= x0 && x0 < x1 && x1 <= 1))
                throw new RequestException(
                    $"{box}: expected y0,x0,y1,x1 with 0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1, shares of the "
                    + "picture's height and width");
            HeightWidth latent = model.LatentSize;
            double top = Math.Round(y0 * latent.Height), bottom = Math.Round(y1 * latent.Height);
            double left = Math.Round(x0 * latent.Width), right = Math.Round(x1 * latent.Width);
            if (top == bottom || left == right)
                throw new RequestException($"{box}: less than a token; give a larger one");
            HeightWidth cell = PixelsOfPosition(model.ImageSize, latent);
            var mask = new bool[model.ImageSize.Height, model.ImageSize.Width];
            for (int y = 0; y < mask.GetLength(0); y++)
                for (int x = 0; x < mask.GetLength(1); x++)
                {
                    long line = y / cell.Height, column = x / cell.Width;
                    mask[y, x] = (top <= line && line < bottom && left <= column && column < right) != outside;
                }
            return mask;
        }

        /// <exception cref="RequestException">Another size than the pictures', or nothing to make anew.</exception>
        internal static void Require(bool[,] mask, HeightWidth size)
        {
            if (mask.GetLength(0) != size.Height || mask.GetLength(1) != size.Width)
                throw new RequestException(
                    $"mask: expected bool [{size.Height}, {size.Width}], found bool [{mask.GetLength(0)}, "
                    + $"{mask.GetLength(1)}]");
            if (!mask.Cast<bool>().Contains(true))
                throw new RequestException("mask: nothing is marked, so that there is nothing to make anew");
        }

        /// <summary>Positions of the latent that are made anew: those of which any pixel is.</summary>
        /// <exception cref="RequestException">The picture is no multiple of the latent.</exception>
        internal static bool[,] Latent(bool[,] mask, HeightWidth latent)
        {
            int height = mask.GetLength(0), width = mask.GetLength(1);
            HeightWidth cell = PixelsOfPosition(new HeightWidth(height, width), latent);
            var found = new bool[latent.Height, latent.Width];
            for (int y = 0; y < height; y++)
                for (int x = 0; x < width; x++)
                    if (mask[y, x]) found[y / cell.Height, x / cell.Width] = true;
            return found;
        }

        /// <summary>Which tokens of all stages are kept, [L], where positions of the latent are made anew: those that
        /// are kept by more than a half once the positions are resized to their stage.</summary>
        internal static bool[] KeptTokens(bool[,] latent, IReadOnlyList<HeightWidth> stages)
        {
            var kept = new List<bool>();
            foreach (HeightWidth stage in stages)
            {
                if (stage.Height * stage.Width <= FewTokens)
                {
                    kept.AddRange(Enumerable.Repeat(true, (int)(stage.Height * stage.Width)));
                    continue;
                }
                Place[] columns = Places(latent.GetLength(1), stage.Width);
                foreach (Place y in Places(latent.GetLength(0), stage.Height))
                    foreach (Place x in columns)
                    {
                        double upper = KeptBetween(latent, y.First, x), lower = KeptBetween(latent, y.Second, x);
                        kept.Add(Between(upper, lower, y.Share) > 0.5);
                    }
            }
            return kept.ToArray();
        }

        /// <summary>The new pictures within the mask, the old one elsewhere, and a seam of `feather` pixels within the
        /// mask: a pixel d steps inside has the share min(d, feather + 1) / (feather + 1) of the new picture, rounded
        /// half up.</summary>
        /// <param name="made">The new pictures, overwritten.</param>
        internal static void Blend(byte[] old, byte[][] made, bool[,] mask, int feather)
        {
            long steps = feather + 1L;
            long[,] depths = Depths(mask, steps);
            int width = mask.GetLength(1);
            foreach (byte[] image in made)
                for (int i = 0; i < image.Length; i++)
                {
                    long share = depths[i / 3 / width, i / 3 % width];
                    image[i] = (byte)((old[i] * (steps - share) * 2 + image[i] * share * 2 + steps) / (2 * steps));
                }
        }

        /// <summary>The king's steps from each pixel to the nearest outside the mask, 0 there, and at most `limit`;
        /// beyond the picture's border there is no outside.</summary>
        private static long[,] Depths(bool[,] mask, long limit)
        {
            int height = mask.GetLength(0), width = mask.GetLength(1), count = height * width;
            var depths = new long[height, width];
            for (int i = 0; i < count; i++) depths[i / width, i % width] = mask[i / width, i % width] ? limit : 0;
            // Neighbours of which a pass already knows the steps that come from there: first from the top, then from
            // the bottom.
            foreach (int back in new[] { -1, 1 })
                for (int k = 0; k < count; k++)
                {
                    int y = (back < 0 ? k : count - 1 - k) / width, x = (back < 0 ? k : count - 1 - k) % width;
                    long nearest = depths[y, x];
                    for (int side = -1; side <= 1; side++)
                        nearest = Math.Min(nearest, Beside(depths, y + back, x + side, limit) + 1);
                    depths[y, x] = Math.Min(nearest, Beside(depths, y, x + back, limit) + 1);
                }
            return depths;
        }

        private static long Beside(long[,] depths, int y, int x, long limit)
        {
            bool inside = y >= 0 && y < depths.GetLength(0) && x >= 0 && x < depths.GetLength(1);
            return inside ? depths[y, x] : limit;
        }

        /// <summary>The pixels of one position of the latent.</summary>
        private static HeightWidth PixelsOfPosition(HeightWidth image, HeightWidth latent)
        {
            if (image.Height % latent.Height != 0 || image.Width % latent.Width != 0)
                throw new RequestException(
                    $"pictures of {image.Height} x {image.Width} can't be edited: they are no multiple of "
                    + $"{latent.Height} x {latent.Width}");
            return new HeightWidth(image.Height / latent.Height, image.Width / latent.Width);
        }

        private static double KeptBetween(bool[,] latent, int y, Place x)
        {
            return Between(latent[y, x.First] ? 0 : 1, latent[y, x.Second] ? 0 : 1, x.Share);
        }

        private static double Between(double a, double b, double share)
        {
            return (1 - share) * a + share * b;
        }

        /// <summary>Bilinear between the centres of pixels. Places and their step are rounded to float32, as the
        /// official code's are: a place that is meant to be a half decides by that what is kept.</summary>
        private static Place[] Places(int from, long to)
        {
            double step = (float)((float)from / (float)to);
            return Enumerable.Range(0, (int)to).Select(i =>
            {
                float at = Math.Max((float)(step * (i + 0.5) - 0.5), 0f);
                int first = Math.Min((int)at, from - 1);
                return new Place { First = first, Second = Math.Min(first + 1, from - 1), Share = at - first };
            }).ToArray();
        }

        /// <summary>As printf's %g has it.</summary>
        private static string Short(double value)
        {
            return double.IsNaN(value) ? "nan"
                : double.IsInfinity(value) ? (value > 0 ? "inf" : "-inf")
                : value.ToString("g6", CultureInfo.InvariantCulture);
        }

        /// <summary>Where a value of a resized row comes from: two of the old ones, and the share of the second.
        /// </summary>
        private struct Place
        {
            public int First;
            public int Second;
            public double Share;
        }
    }

    /// <summary>One input of a request after its checks, for all images of it.</summary>
    internal sealed class ModelInput
    {
        public string Name;
        public Array Data;     // row-major
        public long[] Shape;   // the first size is B where each image has a row
        public bool PerImage;

        /// <summary>The same of `count` images from `first` alone.</summary>
        public ModelInput Images(int first, int count)
        {
            if (!PerImage || count == Shape[0]) return this;
            int row = Data.Length / (int)Shape[0];
            Array data = Array.CreateInstance(Data.GetType().GetElementType(), row * count);
            Array.Copy(Data, row * first, data, 0, data.Length);
            return new ModelInput
            {
                Name = Name, Data = data, PerImage = true, Shape = new long[] { count }.Concat(Shape.Skip(1)).ToArray(),
            };
        }
    }

    /// <summary>Prompts to token ids, as T5's encoders read them.</summary>
    internal static class Tokens
    {
        private const long End = 1;
        private const long FirstByte = 3;  // after the padding, the end and what is unknown
        private const int Shown = 40;      // characters of a prompt

        /// <summary>ByT5's: each byte of UTF-8 plus 3, and the end.</summary>
        /// <exception cref="RequestException">No text, half a character, no tokens, or too many.</exception>
        public static long[] OfBytes(string prompt, long maxTokens)
        {
            RequireText(prompt);
            return Ended(prompt, Encoding.UTF8.GetBytes(prompt).Select(number => number + FirstByte), maxTokens);
        }

        /// <summary>Those of a bundle's tokenizer, the end among them.</summary>
        /// <param name="own">The application's, for kinds other than "bytes"; or null.</param>
        /// <exception cref="RequestException">As above; or the bundle's kind needs one of the application's.</exception>
        public static long[] Of(TokenizerInfo info, ITokenizer own, string prompt)
        {
            if (info.Kind == "bytes") return OfBytes(prompt, info.MaxTokens);
            if (info.File == null)
                throw new RequestException(
                    $"this bundle has a tokenizer of kind \"{info.Kind}\", which this NextScale.cs does not know; give "
                    + "features of the texts in Inputs");
            if (own == null)
                throw new RequestException(
                    $"this bundle's prompts are pieces of {info.File}: set GeneratorOptions.Tokenizer to one that reads "
                    + "it, or give features of the texts in Inputs");
            RequireText(prompt);
            return Ended(prompt, own.Encode(prompt), info.MaxTokens);
        }

        private static void RequireText(string prompt)
        {
            for (int at = 0, character = 0; at < prompt.Length; character++)
            {
                bool pair = char.IsSurrogatePair(prompt, at);
                if (!pair && char.IsSurrogate(prompt[at]))
                    throw new RequestException(
                        $"prompt \"{Wording.Shown(prompt, Shown)}\": character {character} is half of one (a lone "
                        + "surrogate); expected valid Unicode");
                at += pair ? 2 : 1;
            }
        }

        private static long[] Ended(string prompt, IEnumerable<long> ids, long maxTokens)
        {
            long[] ended = ids.Concat(new[] { End }).ToArray();
            if (ended.Length == 1)
                throw new RequestException(
                    $"prompt \"{Wording.Shown(prompt, Shown)}\" is empty: expected a description in words");
            if (ended.Length > maxTokens)
                throw new RequestException(
                    $"prompt \"{Wording.Shown(prompt, Shown)}\" has {ended.Length} tokens, its end among them; "
                    + $"expected at most {maxTokens}: shorten it");
            return ended;
        }
    }

    /// <summary>Texts [N, Ct] in one tensor [B, Lt, Ct], zeros behind each, and its mask [B, Lt].</summary>
    internal sealed class PaddedTexts
    {
        public readonly long[] Shape;
        public readonly float[] Features;
        public readonly long[] Mask;

        public PaddedTexts(IReadOnlyList<float[]> texts, int width)
        {
            int longest = texts.Max(text => text.Length) / width;
            if ((long)texts.Count * longest * width > int.MaxValue)
                throw new RequestException($"{texts.Count} texts of up to {longest} tokens at a time are too many");
            Shape = new long[] { texts.Count, longest, width };
            Features = new float[texts.Count * longest * width];
            Mask = new long[texts.Count * longest];
            for (int row = 0; row < texts.Count; row++)
            {
                texts[row].CopyTo(Features, row * longest * width);
                for (int i = 0; i < texts[row].Length / width; i++) Mask[row * longest + i] = 1;
            }
        }
    }

    /// <summary>One text of each image. Each is encoded once, however many images have it, alone and never padded; what
    /// the images of one batch have is padded with zeros to the longest of them, and masked.</summary>
    internal sealed class Texts
    {
        private readonly RequestInput features;
        private readonly RequestInput mask;
        private readonly List<long[]> tokenIds = new List<long[]>();  // each text once
        private readonly List<int> index = new List<int>();           // which of them each image has
        private float[][] encoded;

        /// <param name="mask">Null where the bundle takes none.</param>
        /// <param name="tokenize">The ids of text number i.</param>
        public Texts(
            RequestInput features, RequestInput mask, IReadOnlyList<string> texts, Func<int, long[]> tokenize)
        {
            this.features = features;
            this.mask = mask;
            var distinct = new Dictionary<string, int>();
            for (int number = 0; number < texts.Count; number++)
            {
                if (!distinct.ContainsKey(texts[number]))
                {
                    tokenIds.Add(tokenize(number));
                    distinct[texts[number]] = distinct.Count;
                }
                index.Add(distinct[texts[number]]);
            }
        }

        public int Count { get { return index.Count; } }

        private int Width { get { return (int)(long)features.Shape[2]; } }

        /// <summary>Whether an input is made of these texts.</summary>
        public bool Makes(RequestInput item)
        {
            return item.Name == features.Name || item.Name == mask?.Name;
        }

        /// <param name="encode">The features of token ids, of a width.</param>
        public void Encode(Func<long[], long, float[]> encode)
        {
            encoded = tokenIds.Select(ids => encode(ids, Width)).ToArray();
        }

        /// <summary>The features and the mask of `count` images from `first`.</summary>
        public IEnumerable<ModelInput> Images(int first, int count)
        {
            var padded = new PaddedTexts(index.Skip(first).Take(count).Select(text => encoded[text]).ToList(), Width);
            yield return new ModelInput
            {
                Name = features.Name, Data = padded.Features, Shape = padded.Shape, PerImage = true,
            };
            if (mask == null) yield break;
            yield return new ModelInput
            {
                Name = mask.Name, Data = padded.Mask, Shape = padded.Shape.Take(2).ToArray(), PerImage = true,
            };
        }
    }

    /// <summary>A request after its checks: copies, which later changes of the caller's arrays do not reach.</summary>
    internal sealed class ModelInputs
    {
        // The settings that are texts, with the kinds of the inputs that they become: features, and their mask.
        private static readonly string[] PromptKinds = { "prompts", "text_features", "text_mask" };
        private static readonly string[] NegativeKinds = { "negative", "negative_features", "negative_mask" };
        private static readonly string[][] TextSettings = { PromptKinds, NegativeKinds };

        private readonly GenerationRequest request;
        private readonly Dictionary<string, Scalar> settings;
        private readonly Dictionary<string, InputTensor> tensors;
        private readonly Dictionary<string, long> symbols = new Dictionary<string, long>();
        private int sizeIndex;
        private List<Texts> texts = new List<Texts>();

        private ModelInputs(GenerationRequest request, Manifest manifest)
        {
            this.request = request;
            Manifest = manifest;
            tensors = request.Inputs.ToDictionary(input => input.Key, input => input.Value);
            settings = new Dictionary<string, Scalar>
            {
                { "cfg_scale", request.CfgScale }, { "top_k", request.TopK }, { "top_p", request.TopP },
                { "tau", request.Tau },
            }.Where(setting => setting.Value != null).ToDictionary(setting => setting.Key, setting => setting.Value);
        }

        /// <summary>What it says of the request's size.</summary>
        public Manifest Manifest { get; private set; }

        public int Count { get; private set; }

        /// <summary>Images at a time.</summary>
        public int BatchSize { get; private set; }

        public IReadOnlyList<ModelInput> Items { get; private set; }

        /// <param name="tokenizer">The application's, or null.</param>
        /// <param name="size">The index of a size where it is not the request that tells it.</param>
        public static ModelInputs Create(
            Bundle bundle, GenerationRequest request, ITokenizer tokenizer, int? size = null)
        {
            if (request == null) throw new ArgumentNullException(nameof(request));
            var inputs = new ModelInputs(request.Copy(), bundle.OfSize(0));
            inputs.CheckNames();
            inputs.sizeIndex = size ?? inputs.ChooseSize(bundle);
            inputs.Manifest = bundle.OfSize(inputs.sizeIndex);
            foreach (string[] kinds in TextSettings) inputs.PadTexts(kinds[1], kinds[2]);
            inputs.ReadTexts(prompt => Tokens.Of(bundle.Tokenizer, tokenizer, prompt));
            inputs.symbols["B"] = inputs.Count;
            if (inputs.Manifest.Request.Any(
                item => item.Kind != "smooth_uniform" && item.RowValues > int.MaxValue / inputs.Count))
                throw new RequestException($"{inputs.Count} images are too many for one request");
            inputs.Items = inputs.Manifest.Request.Where(inputs.IsNeeded).Select(inputs.Make).ToList();
            foreach (string[] kinds in TextSettings) inputs.AddMaskOfOnes(kinds[1], kinds[2]);
            if (request.BatchSize < 1)
                throw new RequestException($"batch_size {request.BatchSize} is out of range: expected at least 1");
            inputs.BatchSize = request.BatchSize ?? inputs.Count;
            RequestInput noise = inputs.Noise;
            int together = Math.Min(inputs.BatchSize, inputs.Count);
            if (noise != null) inputs.CheckFirstImage();
            if (noise != null && noise.RowValues > int.MaxValue / together)
                throw new RequestException($"more_smooth: {together} images at a time are too many");
            return inputs;
        }

        /// <summary>The same request for `count` images from `first` alone, ready to run: the numbers of more_smooth,
        /// V a token, are too many to keep for all images.</summary>
        public ModelInputs Images(int first, int count)
        {
            RequestInput noise = Noise;
            var part = new ModelInputs(request, Manifest) { Count = count };
            part.Items = Items.Select(
                item => item.Name == noise?.Name
                    ? part.Rows(noise, part.SeedNumbers(noise, first, NumberUse.Smoothing))
                    : item.Images(first, count)).Concat(texts.SelectMany(text => text.Images(first, count))).ToList();
            return part;
        }

        /// <param name="encode">The features of token ids, of a width.</param>
        public void EncodeTexts(Func<long[], long, float[]> encode)
        {
            foreach (Texts text in texts) text.Encode(encode);
        }

        /// <summary>Let every image have these tokens, [L], -1 to sample.</summary>
        public void Force(long[] tokens)
        {
            string name = Manifest.InputOfKind("forced_tokens").Name;
            Array data = Items.First(item => item.Name == name).Data;
            for (int i = 0; i < Count; i++) tokens.CopyTo(data, i * tokens.Length);
        }

        /// <summary>The input whose numbers more_smooth takes; null where it is not asked for.</summary>
        private RequestInput Noise
        {
            get { return request.MoreSmooth ? Manifest.InputOfKind("smooth_uniform") : null; }
        }

        private string Takes
        {
            get { return "; it takes " + string.Join(", ", Manifest.Request.Select(item => item.Name)); }
        }

        private RequestInput Find(Func<RequestInput, bool> wanted)
        {
            return Manifest.Request.FirstOrDefault(wanted);
        }

        /// <summary>Everything that is given must be an input of the bundle, and be given once.</summary>
        private void CheckNames()
        {
            if (request.ClassLabels.Count > 0 && Manifest.InputOfKind("label") == null)
                throw new RequestException("class_labels: this bundle has no such input" + Takes);
            if (request.Uniforms != null && Manifest.InputOfKind("uniform") == null)
                throw new RequestException("uniforms: this bundle has no such input" + Takes);
            if (request.MoreSmooth && Noise == null)
                throw new RequestException("more_smooth: this bundle was built without it; build the bundle again");
            foreach (string name in settings.Keys)
            {
                if (Find(item => item.Name == name && item.Kind == "scalar") == null)
                    throw new RequestException($"{name}: this bundle has no such input{Takes}");
                if (request.Scalars.ContainsKey(name))
                    throw new RequestException($"{name} is given twice: by itself and in Scalars");
            }
            foreach (string name in request.Scalars.Keys)
                if (Find(item => item.Name == name && (item.Kind == "scalar" || item.Kind == "size")) == null)
                    throw new RequestException(
                        $"Scalars: this bundle has no input \"{Wording.Printable(name)}\"{Takes}");
            foreach (string name in request.Inputs.Keys)
                if (Find(item => item.Name == name && item.IsTensor) == null)
                    throw new RequestException(
                        $"inputs: this bundle has no input \"{Wording.Printable(name)}\"{Takes}");
            foreach (string name in request.Texts.Keys)
            {
                if (Find(item => item.Name == name && TextSettings.Any(kinds => kinds[1] == item.Kind)) == null)
                    throw new RequestException(
                        $"Texts: this bundle has no features \"{Wording.Printable(name)}\"{Takes}");
                if (request.Inputs.ContainsKey(name))
                    throw new RequestException($"{name} is given twice: in Inputs and in Texts");
            }
        }

        /// <summary>The index of the size that is asked for, by area and ratio or by itself.</summary>
        private int ChooseSize(Bundle bundle)
        {
            string told = request.Area != null ? "area" : request.Ratio != null ? "ratio" : null;
            RequestInput item = bundle.InputOfKind("size");
            Scalar given;
            if (item == null)
            {
                HeightWidth size = bundle.Model.ImageSize;
                if (told != null)
                    throw new RequestException(
                        $"{told}: this bundle has one size, {size.Height} x {size.Width}; leave it out");
                return 0;
            }
            if (!request.Scalars.TryGetValue(item.Name, out given))
                return SizeInfo.Choose(bundle.Sizes, request.Area, request.Ratio);
            if (told != null)
                throw new RequestException($"{told}: the size is given twice: by {told} and in Scalars");
            double index = given.Values.Length == 1 ? given.Values[0] : double.NaN;
            if (index != Math.Floor(index)) throw new RequestException($"{item.Name}: expected an integer");
            if (!(index >= 0 && index < bundle.Sizes.Count))
                throw new RequestException(
                    $"{item.Name} {RequestInput.Show(index)} is out of range: expected 0 to {bundle.Sizes.Count - 1}");
            return (int)index;
        }

        /// <summary>Put texts of several lengths among the tensors, padded, with their mask.</summary>
        private void PadTexts(string kind, string maskKind)
        {
            RequestInput features = Manifest.InputOfKind(kind), mask = Manifest.InputOfKind(maskKind);
            IReadOnlyList<InputTensor> given;
            if (features == null) return;
            bool masked = mask != null && tensors.ContainsKey(mask.Name);
            if (!request.Texts.TryGetValue(features.Name, out given))
            {
                if (masked && !tensors.ContainsKey(features.Name))
                    throw new RequestException($"{mask.Name} is given without {features.Name}");
                return;
            }
            var width = (long)features.Shape[2];
            for (int i = 0; i < given.Count; i++)
            {
                InputTensor text = given[i];
                if (text.Dtype != features.Dtype || text.Shape.Length != 2 || text.Shape[1] != width
                    || text.Data.Length == 0 || text.Shape[0] != text.Data.Length / width
                    || text.Data.Length % width != 0)
                    throw new RequestException(
                        $"{features.Name}[{i}]: expected {features.Dtype} [N, {width}], found {Describe(text)} of "
                        + $"{text.Data.Length} numbers");
            }
            if (given.Count == 0)
                throw new RequestException($"{features.Name}: expected a text for each image, found none");
            var padded = new PaddedTexts(given.Select(text => (float[])text.Data).ToList(), (int)width);
            tensors[features.Name] = new InputTensor(padded.Features, padded.Shape);
            if (given.All(text => text.Data.Length == given[0].Data.Length)) return;
            if (mask == null)
                throw new RequestException(
                    $"{features.Name}: texts differ in length, and this bundle takes no mask");
            if (masked)
                throw new RequestException(
                    $"{mask.Name}: texts of different lengths get a mask of their own; leave it out");
            tensors[mask.Name] = new InputTensor(padded.Mask, padded.Shape.Take(2).ToArray());
        }

        /// <summary>Read the prompts and negative texts that are given, and find B.</summary>
        private void ReadTexts(Func<string, long[]> tokenize)
        {
            bool guided = request.Negative != null && request.Negative.ForAll != "";  // "" is as null
            RequestInput features = Manifest.InputOfKind("text_features"), label = Manifest.InputOfKind("label");
            if (label != null && request.ClassLabels.Count == 0)
                throw new RequestException($"{label.Name} is empty: expected at least one class");
            if (request.Prompts != null) RequireNoTensors(PromptKinds);
            if (guided) RequireNoTensors(NegativeKinds);
            if (features != null && !tensors.ContainsKey(features.Name) && request.Prompts == null
                && Manifest.Graphs.ContainsKey("text_encoder"))
                throw new RequestException("prompts are missing: expected a text for each image");
            int? images = label == null ? (int?)null : request.ClassLabels.Count;
            if (request.Prompts != null)
            {
                texts.Add(TextsOf(PromptKinds, request.Prompts, images, tokenize));
                images = texts[0].Count;
            }
            Count = images ?? CountImages();
            if (!guided) return;
            IReadOnlyList<string> negative = request.Negative.ForAll == null
                ? request.Negative.Texts : Enumerable.Repeat(request.Negative.ForAll, Count).ToArray();
            texts.Add(TextsOf(NegativeKinds, negative, Count, tokenize));
        }

        private void RequireNoTensors(string[] kinds)
        {
            foreach (string kind in kinds.Skip(1))
            {
                RequestInput item = Manifest.InputOfKind(kind);
                if (item != null && tensors.ContainsKey(item.Name))
                    throw new RequestException($"{kinds[0]} and {item.Name} are both given: leave one out");
            }
        }

        /// <param name="images">B; null where the texts tell it.</param>
        private Texts TextsOf(
            string[] kinds, IReadOnlyList<string> given, int? images, Func<string, long[]> tokenize)
        {
            string setting = kinds[0];
            RequestInput features = Manifest.InputOfKind(kinds[1]);
            if (features == null) throw new RequestException($"{setting}: this bundle has no such input{Takes}");
            if (!Manifest.Graphs.ContainsKey("text_encoder"))
                throw new RequestException(
                    $"{setting}: this bundle has no text encoder; give {features.Name} in inputs");
            if (Manifest.Tokenizer == null)
                throw new RequestException($"{setting}: this bundle has no tokenizer; give {features.Name} in inputs");
            int none = given.ToList().IndexOf(null);
            if (none >= 0) throw new RequestException($"{setting}[{none}]: expected a text, found null");
            if (given.Count == 0 || given.Count != (images ?? given.Count))
            {
                string expected = images == null ? "at least one text" : $"a text for each of {images} images";
                throw new RequestException($"{setting}: expected {expected}, found {given.Count}");
            }
            return new Texts(features, Manifest.InputOfKind(kinds[2]), given, number =>
            {
                try
                {
                    return tokenize(given[number]);
                }
                catch (RequestException error)
                {
                    throw new RequestException($"{setting}[{number}]: {error.Message}");
                }
            });
        }

        /// <summary>Add the mask that nobody gave, of features that are there.</summary>
        private void AddMaskOfOnes(string kind, string maskKind)
        {
            RequestInput mask = Manifest.InputOfKind(maskKind), features = Manifest.InputOfKind(kind);
            ModelInput given = Items.FirstOrDefault(item => item.Name == features?.Name);
            if (mask == null || given == null || tensors.ContainsKey(mask.Name)) return;
            long[] shape = given.Shape.Take(2).ToArray();
            Items = Items.Concat(new[]
            {
                new ModelInput
                {
                    Name = mask.Name, Data = Enumerable.Repeat(1L, (int)(shape[0] * shape[1])).ToArray(), Shape = shape,
                    PerImage = true,
                },
            }).ToList();
        }

        /// <summary>B, where neither labels nor prompts tell it: that of the first input that is given with a row for
        /// each image; or else 1.</summary>
        private int CountImages()
        {
            foreach (RequestInput item in Manifest.Request.Where(item => item.PerImage))
            {
                InputTensor given;
                if (item.Kind == "uniform" && request.Uniforms != null) return Math.Max(request.Uniforms.Length, 1);
                if (item.Kind == "forced_tokens" && request.ForcedTokens != null)
                    return Math.Max(request.ForcedTokens.Length, 1);
                if (!tensors.TryGetValue(item.Name, out given)) continue;
                if (given.Shape.Length == 0 || given.Shape[0] < 1 || given.Shape[0] > int.MaxValue)
                    throw new RequestException(
                        $"{item.Name}: expected a row for each image, found {Describe(given)}");
                return (int)given.Shape[0];
            }
            return 1;
        }

        /// <summary>Images and masks that the stage graph does not list are other roles' inputs; what prompts become,
        /// and masks that nobody gave, are made elsewhere.</summary>
        private bool IsNeeded(RequestInput item)
        {
            if (!item.IsTensor || tensors.ContainsKey(item.Name)) return true;
            if (texts.Any(text => text.Makes(item)) || TextSettings.Any(kinds => kinds[2] == item.Kind)) return false;
            return Manifest.Graphs["stage"].Inputs.Any(tensor => tensor.Name == item.Name);
        }

        private ModelInput Make(RequestInput item)
        {
            switch (item.Kind)
            {
                case "label":
                    return Rows(item, request.ClassLabels.Select(Manifest.Model.RequireLabel).ToArray());
                case "uniform":
                    return Rows(item, request.Uniforms == null ? SeedUniforms(item) : CheckedUniforms(item));
                case "smooth_uniform":
                    long[] none = { Count, 0, Manifest.Model.VocabSize };
                    return new ModelInput { Name = item.Name, Data = new float[0], Shape = none, PerImage = true };
                case "forced_tokens":
                    return Rows(item, CheckedTokens(item));
                case "scalar":
                    return MakeScalar(item);
                case "size":
                    return new ModelInput { Name = item.Name, Data = new long[] { sizeIndex }, Shape = new long[0] };
                case "negative_features":
                    if (tensors.ContainsKey(item.Name)) return CheckedFeatures(item, MakeTensor(item));
                    long[] noText = { Count, 0, (long)item.Shape[2] };
                    return new ModelInput { Name = item.Name, Data = new float[0], Shape = noText, PerImage = true };
                case "text_features":
                    return CheckedFeatures(item, MakeTensor(item));
                case "text_mask":
                case "negative_mask":
                    return CheckedMask(item, MakeTensor(item));
                default:
                    return MakeTensor(item);
            }
        }

        private ModelInput Rows(RequestInput item, Array data)
        {
            long[] shape = new long[] { Count }.Concat(item.Shape.OfType<long>()).ToArray();
            return new ModelInput { Name = item.Name, Data = data, Shape = shape, PerImage = true };
        }

        private float[] SeedUniforms(RequestInput item)
        {
            CheckFirstImage();
            return SeedNumbers(item, 0, NumberUse.Sampling);
        }

        private void CheckFirstImage()
        {
            if (request.FirstImage > ulong.MaxValue - (ulong)(Count - 1))
                throw new RequestException(
                    $"first_image {request.FirstImage} is out of range: expected 0 to 2^64 - {Count}");
        }

        /// <summary>Of as many images of the request as these are, from `first`: [Count, row].</summary>
        private float[] SeedNumbers(RequestInput item, int first, NumberUse use)
        {
            var length = (int)item.RowValues;
            var numbers = new float[Count * length];
            ulong image = request.FirstImage + (ulong)first;
            for (int i = 0; i < Count; i++)
                Uniforms.OfImage(request.Seed, image + (ulong)i, length, use).CopyTo(numbers, i * length);
            return numbers;
        }

        private float[] CheckedUniforms(RequestInput item)
        {
            float[] numbers = Flat(item, "floats", request.Uniforms);
            if (!numbers.All(number => number >= 0 && number < 1))  // written so that NaN is refused
                throw new RequestException(
                    $"{item.Name}: expected numbers of at least 0 and below 1, found "
                    + RequestInput.Show(numbers.First(number => !(number >= 0 && number < 1))));
            return numbers;
        }

        private long[] CheckedTokens(RequestInput item)
        {
            if (request.ForcedTokens == null) return Enumerable.Repeat(-1L, Count * (int)item.RowValues).ToArray();
            long[] tokens = Flat(item, "integers", request.ForcedTokens);
            long largest = Manifest.Model.VocabSize - 1;
            if (tokens.Min() < -1 || tokens.Max() > largest)
                throw new RequestException(
                    $"{item.Name}: expected -1 (sample) to {largest}, found {tokens.Min()} to {tokens.Max()}");
            return tokens;
        }

        private T[] Flat<T>(RequestInput item, string kind, T[][] rows)
        {
            string expected = $"{kind} [{string.Join(", ", new object[] { Count }.Concat(item.Shape.Skip(1)))}]";
            if (rows.Length != Count)
                throw new RequestException($"{item.Name}: expected {expected}, found {rows.Length} rows");
            foreach (T[] row in rows)
                if (row == null || row.Length != item.RowValues)
                    throw new RequestException(
                        $"{item.Name}: expected {expected}, found a row of {row?.Length ?? 0}");
            return rows.SelectMany(row => row).ToArray();
        }

        /// <summary>One value, or one for each stage; a single one stands for all stages.</summary>
        private ModelInput MakeScalar(RequestInput item)
        {
            Scalar given;
            if (!settings.TryGetValue(item.Name, out given)) request.Scalars.TryGetValue(item.Name, out given);
            double[] values = given?.Values ?? item.Defaults;
            var stages = (int)item.RowValues;
            if (values.Length != 1 && values.Length != stages)
            {
                string more = item.Shape.Count == 0 ? "" : $", or {stages}: one for each stage";
                throw new RequestException($"{item.Name}: expected one value{more}, found {values.Length}");
            }
            foreach (double value in values)
            {
                if (!item.Allows(value))
                    throw new RequestException(
                        $"{item.Name} {RequestInput.Show(value)} is out of range: expected {item.Limits}");
                if (item.Dtype == "int64" && value != Math.Floor(value))
                    throw new RequestException($"{item.Name} {RequestInput.Show(value)}: expected an integer");
            }
            double[] all = Enumerable.Range(0, stages).Select(i => values[values.Length == 1 ? 0 : i]).ToArray();
            return new ModelInput
            {
                Name = item.Name,
                Data = item.Dtype == "int64"
                    ? (Array)all.Select(value => (long)value).ToArray() : all.Select(value => (float)value).ToArray(),
                Shape = item.Shape.OfType<long>().ToArray(),
            };
        }

        /// <summary>A tensor of the caller's; `symbols` learns the sizes that no input before it decided.</summary>
        private ModelInput MakeTensor(RequestInput item)
        {
            IEnumerable<object> sizes = item.Shape.Select(
                size => size is string && symbols.ContainsKey((string)size) ? symbols[(string)size] : size).ToList();
            string wanted = $"{item.Dtype} [{string.Join(", ", sizes)}]";
            InputTensor given;
            if (!tensors.TryGetValue(item.Name, out given))
                throw new RequestException($"{item.Name} is missing: expected {wanted}; give it in inputs");
            bool fits = given.Dtype == item.Dtype && given.Shape.Length == item.Shape.Count;
            long elements = 1;
            for (int i = 0; fits && i < given.Shape.Length; i++)
            {
                long found = given.Shape[i];
                var symbol = item.Shape[i] as string;
                if (symbol != null && !symbols.ContainsKey(symbol)) symbols[symbol] = found;
                fits = found > 0 && found == (symbol != null ? symbols[symbol] : (long)item.Shape[i])
                    && elements <= given.Data.Length / found;
                elements *= fits ? found : 1;
            }
            if (!fits || elements != given.Data.Length)
                throw new RequestException(
                    $"{item.Name}: expected {wanted}, found {Describe(given)} of {given.Data.Length} numbers");
            return new ModelInput
            {
                Name = item.Name, Data = (Array)given.Data.Clone(), Shape = (long[])given.Shape.Clone(),
                PerImage = item.PerImage,
            };
        }

        /// <summary>The features themselves: of no more tokens than the model takes, and numbers that a mask can hide.
        /// </summary>
        private static ModelInput CheckedFeatures(RequestInput item, ModelInput features)
        {
            if (features.Shape[1] > item.MaxTokens)
                throw new RequestException(
                    $"{item.Name}: expected texts of at most {item.MaxTokens} tokens, found {features.Shape[1]}: "
                    + "shorten them");
            foreach (float value in (float[])features.Data)
                if (float.IsNaN(value) || float.IsInfinity(value))
                    throw new RequestException(
                        $"{item.Name}: expected finite numbers, found {RequestInput.Show(value)}");
            return features;
        }

        /// <summary>The mask itself: graphs may multiply by it, or compare. Each image has a text.</summary>
        private static ModelInput CheckedMask(RequestInput item, ModelInput mask)
        {
            foreach (long value in (long[])mask.Data)
                if (value != 0 && value != 1)
                    throw new RequestException(
                        $"{item.Name}: expected 1 (text) or 0 (behind its end), found {value}");
            var length = (int)mask.Shape[1];
            for (int image = 0; item.Kind == "text_mask" && image < mask.Shape[0]; image++)
                if (!((long[])mask.Data).Skip(image * length).Take(length).Contains(1))
                    throw new RequestException(
                        $"{item.Name}[{image}]: expected at least one 1 (text), found none");
            return mask;
        }

        private static string Describe(InputTensor tensor)
        {
            return $"{tensor.Dtype} [{string.Join(", ", tensor.Shape)}]";
        }
    }

    /// <summary>A graph's inputs as tensors over the request's own memory, which stays pinned until disposal.</summary>
    internal sealed class Feeds : IDisposable
    {
        private readonly List<OrtValue> owned = new List<OrtValue>();
        private readonly int count;

        /// <param name="count">Images.</param>
        public Feeds(int count)
        {
            this.count = count;
        }

        /// <summary>Those of the request's inputs that the graph takes.</summary>
        public Feeds(ModelInputs inputs, GraphInfo graph) : this(inputs.Count)
        {
            foreach (ModelInput item in inputs.Items)
                if (graph.Inputs.Any(tensor => tensor.Name == item.Name)) Add(item.Name, item.Data, item.Shape);
        }

        /// <summary>By input name. Only what Add and AddZeros made is disposed with the feeds.</summary>
        public Dictionary<string, OrtValue> Values { get; } = new Dictionary<string, OrtValue>();

        /// <param name="shape">No sizes make a scalar.</param>
        public void Add(string name, Array data, long[] shape)
        {
            if (data is float[]) Own(name, OrtValue.CreateTensorValueFromMemory((float[])data, shape));
            else if (data is long[]) Own(name, OrtValue.CreateTensorValueFromMemory((long[])data, shape));
            else if (data is int[]) Own(name, OrtValue.CreateTensorValueFromMemory((int[])data, shape));
            else if (data.GetType() == typeof(sbyte[]))  // to `is` it is a byte[], too
                Own(name, OrtValue.CreateTensorValueFromMemory((sbyte[])data, shape));
            else Own(name, OrtValue.CreateTensorValueFromMemory((byte[])data, shape));
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

    /// <summary>Memory that was freed and that the C library keeps for later.</summary>
    internal static class FreedMemory
    {
        /// <summary>Give it back to the operating system, where the C library is glibc.</summary>
        public static void Return()
        {
            try
            {
                malloc_trim(UIntPtr.Zero);
            }
            catch (Exception error) when (error is DllNotFoundException || error is EntryPointNotFoundException)
            {
                // another C library, which has no such call
            }
        }

        [DllImport("libc.so.6")]
        private static extern int malloc_trim(UIntPtr pad);
    }

    /// <summary>The CPUs that this process may use: its affinity, its cores, and the quota of CPU time of its control
    /// groups. The Python package and nextscale.hpp read the same of Linux's files.</summary>
    internal static class Cpus
    {
        /// <summary>Threads of one operator where the user names no number: one for each physical core that this process
        /// may run on, and no more than its quota of CPU time, rounded up; 0, ONNX Runtime's own choice, where no file
        /// tells.</summary>
        /// <param name="root">Holds proc and sys.</param>
        public static int DefaultThreads(string root = "/")
        {
            int cores = Allowed(root).Select(cpu => Siblings(root, cpu)).Distinct().Count();
            return (int)Math.Min(cores, Quota(root) ?? cores);
        }

        /// <summary>CPUs whose time this process may use: those that it may run on, and no more than its quota of CPU
        /// time, rounded up.</summary>
        /// <param name="root">Holds proc and sys.</param>
        public static long LogicalCpus(string root = "/")
        {
            int found = Allowed(root).Count();
            int cpus = found != 0 ? found : Environment.ProcessorCount;
            return Math.Min(cpus, Quota(root) ?? cpus);
        }

        /// <summary>The logical CPUs that the calling thread may run on; none where no file tells.</summary>
        private static IEnumerable<int> Allowed(string root)
        {
            const string Key = "Cpus_allowed_list:";
            return Lines(root, "proc/thread-self/status").Where(line => line.StartsWith(Key, StringComparison.Ordinal))
                .SelectMany(line => Regex.Matches(line.Substring(Key.Length), @"([0-9]+)(?:-([0-9]+))?").Cast<Match>())
                .SelectMany(range =>
                {
                    int first = Number(range.Groups[1].Value);
                    int last = range.Groups[2].Success ? Number(range.Groups[2].Value) : first;
                    return Enumerable.Range(first, last - first + 1);
                });
        }

        private static string Siblings(string root, int cpu)
        {
            string name = cpu.ToString(CultureInfo.InvariantCulture);
            string siblings = Lines(root, $"sys/devices/system/cpu/cpu{name}/topology/thread_siblings_list")
                .FirstOrDefault();
            return string.IsNullOrEmpty(siblings) ? name : siblings;
        }

        /// <summary>CPUs' worth of time that the control groups of this process allow it, rounded up; null where nothing
        /// limits it.</summary>
        private static long? Quota(string root)
        {
            return Groups(root).Select(group => GroupQuota(root, group)).Min();
        }

        /// <summary>The folders of this process's groups, and of the groups around them, that may have a quota (cgroup
        /// v1 and v2). A mount shows a hierarchy from one of its groups on: in a container mostly from the container's
        /// own.</summary>
        private static IEnumerable<string> Groups(string root)
        {
            var groups = new Dictionary<string, string>();
            foreach (string line in Lines(root, "proc/thread-self/cgroup"))
            {
                string[] parts = line.Split(new[] { ':' }, 3);  // hierarchy:controllers:group
                if (parts.Length == 3 && (parts[0] == "0" || parts[1].Split(',').Contains("cpu")))
                    groups[parts[0] == "0" ? "cgroup2" : "cgroup"] = parts[2];
            }
            foreach (string line in Lines(root, "proc/thread-self/mountinfo"))
            {
                int dash = line.IndexOf(" - ", StringComparison.Ordinal);
                if (dash < 0) continue;
                string[] mount = line.Substring(0, dash).Split(' '), system = line.Substring(dash + 3).Split(' ');
                string group;
                if (mount.Length < 5 || !groups.TryGetValue(system[0], out group)
                    || (system[0] == "cgroup" && !system.Last().Split(',').Contains("cpu")))
                    continue;
                string top = mount[3].TrimEnd('/'), rest = group.TrimEnd('/');
                if (rest.Split('/').Contains("..") || !$"{rest}/".StartsWith($"{top}/", StringComparison.Ordinal))
                    continue;
                for (string below = rest.Substring(top.Length); ; below = below.Substring(0, below.LastIndexOf('/')))
                {
                    yield return mount[4] + below;
                    if (below.Length == 0) break;
                }
            }
        }

        /// <summary>The quota of one group in whole CPUs, rounded up; null where there is none.</summary>
        private static long? GroupQuota(string root, string group)
        {
            string[] words = Words(root, $"{group}/cpu.max");
            if (words.Length == 0)
                words = Words(root, $"{group}/cpu.cfs_quota_us")
                    .Concat(Words(root, $"{group}/cpu.cfs_period_us")).ToArray();
            long quota, period;
            if (words.Length != 2 || !IsNumber(words[0], out quota) || !IsNumber(words[1], out period) || period == 0)
                return null;  // no such file, "max", or -1
            return Math.Max((quota + period - 1) / period, 1);
        }

        private static int Number(string digits)
        {
            return int.Parse(digits, NumberStyles.None, CultureInfo.InvariantCulture);
        }

        private static bool IsNumber(string text, out long number)
        {
            return long.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out number);
        }

        private static string[] Words(string root, string name)
        {
            return Lines(root, name).Take(1)
                .SelectMany(line => line.Split(new[] { ' ' }, StringSplitOptions.RemoveEmptyEntries)).ToArray();
        }

        /// <summary>The lines of a file without white space at their ends; none where there is no file to read.</summary>
        private static string[] Lines(string root, string name)
        {
            try
            {
                return File.ReadAllLines(Path.Combine(root, name.TrimStart('/'))).Select(line => line.TrimEnd()).ToArray();
            }
            catch (Exception error) when (error is IOException || error is UnauthorizedAccessException)
            {
                return new string[0];
            }
        }
    }

    /// <summary>What a library of operators says of itself; it stays loaded.</summary>
    internal sealed class OperatorLibrary
    {
        private const string Domain = "nextscale";
        private const string SlowIsa = "portable";  // plain C++: stock operators are faster
        private const int LoadNow = 2;  // RTLD_NOW

        private readonly string path;
        private readonly long version;
        private readonly string isa;  // that its kernels use here; null where the environment asks for one that is not there

        [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
        private delegate int GetVersion();

        [UnmanagedFunctionPointer(CallingConvention.Cdecl)]
        private delegate IntPtr GetIsa();

        /// <exception cref="NextScaleException">The file is no such library.</exception>
        private OperatorLibrary(string file)
        {
            path = Wording.Printable(file);
            IntPtr ofVersion, ofIsa;
            try
            {
                IntPtr library = Load(Path.GetFullPath(file));
                ofVersion = Find(library, "nextscale_ops_version");
                ofIsa = Find(library, "nextscale_ops_isa");
            }
            catch (EntryPointNotFoundException error)
            {
                throw new NextScaleException(
                    $"{path}: a library without nextscale's operators; expected that of nextscale-ops", error);
            }
            catch (Exception error) when (error is DllNotFoundException || error is BadImageFormatException)
            {
                throw new NextScaleException(
                    $"{path}: cannot be loaded as a library of operators: {Wording.OneLine(error)}", error);
            }
            version = ((GetVersion)Marshal.GetDelegateForFunctionPointer(ofVersion, typeof(GetVersion)))();
            IntPtr name = ((GetIsa)Marshal.GetDelegateForFunctionPointer(ofIsa, typeof(GetIsa)))();
            isa = name == IntPtr.Zero ? null : Marshal.PtrToStringAnsi(name);
        }

        /// <summary>Which graphs run.</summary>
        /// <exception cref="NextScaleException">Fused graphs are asked for and cannot run, or the library is none.
        /// </exception>
        public static Choice Choose(Bundle bundle, GeneratorOptions options)
        {
            if (options.Ops == Ops.Stock) return new Choice(false, "stock operators were asked for");
            OperatorLibrary library =
                string.IsNullOrEmpty(options.OpsLibrary) ? null : new OperatorLibrary(options.OpsLibrary);
            string lack = Lack(bundle, library);
            if (lack == null && options.Ops == Ops.Auto && library.isa == SlowIsa)
                return new Choice(false, "stock operators are faster on this processor");
            if (lack == null) return new Choice(true, $"nextscale-ops on {library.isa}");
            if (options.Ops == Ops.Fused)
                throw new NextScaleException(
                    $"{Wording.Printable(bundle.Folder)}: fused operators cannot run: {lack}");
            return new Choice(false, lack);
        }

        /// <summary>What keeps a bundle's fused graphs from running; null: nothing does.</summary>
        private static string Lack(Bundle bundle, OperatorLibrary library)
        {
            List<FusedInfo> fused = Manifest.Roles.Where(bundle.Graphs.ContainsKey)
                .Select(role => bundle.Graphs[role].Fused).Where(variant => variant != null).ToList();
            if (fused.Count == 0) return "the bundle has no fused graphs; build it again without --no-fused";
            if (library == null) return "no library of nextscale-ops was given; give its file as OpsLibrary";
            if (library.isa == null) return "NEXTSCALE_OPS_ISA names no instruction set that this processor has";
            foreach (FusedInfo variant in fused)
            {
                foreach (KeyValuePair<string, long> item in variant.Operators)
                    if (item.Key != Domain)
                        return $"they need operators of {Wording.Printable(item.Key)}, which nextscale-ops does not have";
                foreach (KeyValuePair<string, long> item in variant.Operators)
                    if (item.Value != library.version)
                        return $"they need version {item.Value} of nextscale-ops' operators, and {library.path} has "
                            + $"version {library.version}: install the nextscale-ops that fits, or build the bundle again";
            }
            return null;
        }

#if NETCOREAPP
        private static IntPtr Load(string file)
        {
            return NativeLibrary.Load(file);
        }

        private static IntPtr Find(IntPtr library, string name)
        {
            return NativeLibrary.GetExport(library, name);
        }
#else
        private static readonly bool Windows = Path.DirectorySeparatorChar != '/';

        private static IntPtr Load(string file)
        {
            IntPtr library = Windows ? LoadLibrary(file) : Open(file, LoadNow);
            if (library == IntPtr.Zero) throw new DllNotFoundException("the system cannot load it");
            return library;
        }

        private static IntPtr Find(IntPtr library, string name)
        {
            IntPtr function = Windows ? GetProcAddress(library, name) : Symbol(library, name);
            if (function == IntPtr.Zero) throw new EntryPointNotFoundException(name);
            return function;
        }

        [DllImport("libdl.so.2", EntryPoint = "dlopen")]
        private static extern IntPtr Open(string path, int flags);

        [DllImport("libdl.so.2", EntryPoint = "dlsym")]
        private static extern IntPtr Symbol(IntPtr library, string name);

        [DllImport("kernel32", CharSet = CharSet.Unicode)]
        private static extern IntPtr LoadLibrary(string path);

        [DllImport("kernel32", CharSet = CharSet.Ansi)]
        private static extern IntPtr GetProcAddress(IntPtr library, string name);
#endif
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

        private static readonly Version Minimum = new Version(1, 23);
        private const string CrashingRelease = "1.29.0";
        private static readonly object Starting = new object();
        private const string TelemetryVariable = "ORT_DISABLE_TELEMETRY";

        /// <summary>Load one graph and check that it is the one that the manifest describes.</summary>
        public static InferenceSession Open(Bundle bundle, string graph, GeneratorOptions options, bool fused)
        {
            string version = RequireOnnxRuntime();
            string path = bundle.GraphPath(graph, fused);
            InferenceSession session;
            try
            {
                using (SessionOptions settings = Settings(options))
                {
                    if (fused && bundle.Graph(graph).Fused != null)
                        settings.RegisterCustomOpLibrary(Path.GetFullPath(options.OpsLibrary));
                    session = new InferenceSession(path, settings);
                }
            }
            catch (Exception error)  // its exceptions have no common base: a new error code is a KeyNotFoundException
            {
                string message = $"{path}: onnxruntime {version} cannot load it: {Wording.OneLine(error)}";
                if (Wording.Shortage(error) != null) throw new NextScaleException(message, error);
                throw new BundleException(message, error);
            }
            GraphInfo info = bundle.Graph(graph);
            string difference = Difference("input", info.Inputs, session.InputMetadata)
                ?? Difference("output", info.Outputs, session.OutputMetadata);
            if (difference == null) return session;
            session.Dispose();
            throw new BundleException($"{path}: not the graph that the manifest describes: {difference}");
        }

        private static SessionOptions Settings(GeneratorOptions options)
        {
            int threads = options.Threads != 0 ? options.Threads : Cpus.DefaultThreads();
            bool spinning = options.Spinning && threads <= Cpus.LogicalCpus();
            var settings = new SessionOptions
            {
                IntraOpNumThreads = threads,
                InterOpNumThreads = 1,
                EnableCpuMemArena = options.MemoryArena && !options.ReturnMemory,
                EnableMemoryPattern = options.MemoryPattern,
                LogSeverityLevel = OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL,  // what is wrong is an exception anyway
            };
            settings.AddSessionConfigEntry("session.intra_op.allow_spinning", spinning ? "1" : "0");
            // Threads of a run that has ended would take cores from the next session's for a while.
            settings.AddSessionConfigEntry("session.force_spinning_stop", "1");
            return settings;
        }

        private static string RequireOnnxRuntime()
        {
            string version;
            TurnTelemetryOff();
            try
            {
                version = QuietEnvironment().GetVersionString();
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
            if (version == CrashingRelease)
                throw new NextScaleException(
                    $"onnxruntime {version} crashes in containers without a shell: take another release of the package "
                    + "Microsoft.ML.OnnxRuntime");
            return version;
        }

        /// <summary>The environment, which writes no log lines unless the application made it before.</summary>
        private static OrtEnv QuietEnvironment()
        {
            lock (Starting)
            {
                var settings = new EnvironmentCreationOptions { logLevel = OrtLoggingLevel.ORT_LOGGING_LEVEL_FATAL };
                return OrtEnv.IsCreated ? OrtEnv.Instance() : OrtEnv.CreateInstanceWithOptions(ref settings);
            }
        }

        /// <summary>ONNX Runtime 1.29 and later looks at a variable when its environment is made. What .NET sets stays
        /// within .NET, so that the native library would not see it; what the user has set already stays.</summary>
        private static void TurnTelemetryOff()
        {
            if (Path.DirectorySeparatorChar != '/') return;  // Windows has no such variable
            string said = Environment.GetEnvironmentVariable(TelemetryVariable);
            string value = string.IsNullOrEmpty(said) ? "1" : said;
            try
            {
                SetNativeVariable(TelemetryVariable, value, 1);
            }
            catch (Exception error) when (error is DllNotFoundException || error is EntryPointNotFoundException)
            {
                Environment.SetEnvironmentVariable(TelemetryVariable, value);  // where no libc can be called
            }
        }

        [DllImport("libc", EntryPoint = "setenv")]
        private static extern int SetNativeVariable(string name, string value, int overwrite);

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
        public IReadOnlyList<object> InitialShape;  // a long, "B", "2B", or a symbol of the size

        /// <summary>The same state with numbers for symbols of its initial shape.</summary>
        public StateInfo Resolved(Dictionary<string, long> symbols)
        {
            var state = (StateInfo)MemberwiseClone();
            state.InitialShape = SizedModel.Resolved(InitialShape, symbols);
            return state;
        }
    }

    /// <summary>How prompts become the token ids of the text encoder.</summary>
    internal sealed class TokenizerInfo
    {
        public string Kind;     // "bytes" or "sentencepiece", or one that this file does not know
        public long MaxTokens;  // of a prompt, its end included; 0 where the kind is not known
        public string File;     // of a "sentencepiece" model
    }

    /// <summary>The model at a size, and the numbers of the symbols that the size decides: none where the bundle has
    /// one.</summary>
    internal sealed class SizedModel
    {
        public ModelInfo Model;
        public Dictionary<string, long> Symbols = new Dictionary<string, long>();

        /// <summary>A shape with numbers for the symbols that are given.</summary>
        public static IReadOnlyList<object> Resolved(IReadOnlyList<object> shape, Dictionary<string, long> symbols)
        {
            return shape.Select(size => size is string && symbols.ContainsKey((string)size)
                ? symbols[(string)size] : size).ToList();
        }
    }

    /// <summary>The fused variant of a graph: its ONNX file, and the version of each domain of operators that it needs.
    /// </summary>
    internal sealed class FusedInfo
    {
        public string File;
        public IReadOnlyList<KeyValuePair<string, long>> Operators;
    }

    /// <summary>The contract of a graph, and the ONNX file of its stock variant.</summary>
    internal sealed class GraphInfo
    {
        public string File;
        public FusedInfo Fused;  // null where the graph has no such variant
        public IReadOnlyList<TensorInfo> Inputs;
        public IReadOnlyList<TensorInfo> Outputs;
        public IReadOnlyList<StateInfo> State;

        /// <summary>The same graph with numbers for symbols of its states.</summary>
        public GraphInfo Resolved(Dictionary<string, long> symbols)
        {
            var graph = (GraphInfo)MemberwiseClone();
            graph.State = State.Select(state => state.Resolved(symbols)).ToList();
            return graph;
        }
    }

    internal sealed class FileEntry
    {
        public long Size;
        public string Sha256;
    }

    /// <summary>One input of a request. "B" comes first in its shape where each image has a row; all images share the
    /// others. In a bundle of several sizes "L", "S", "h", "w", "H" and "W" are what the size of a request decides.
    /// </summary>
    internal sealed class RequestInput
    {
        /// <summary>Labels, texts and a size are the caller's, readers can make uniforms, forced tokens and scalars,
        /// and the caller gives tensors of the other kinds.</summary>
        public static readonly string[] Kinds =
        {
            "label", "uniform", "smooth_uniform", "forced_tokens", "scalar", "text_features", "text_mask", "image",
            "mask", "negative_features", "negative_mask", "size",
        };

        /// <summary>Those of which a request may have several.</summary>
        public static readonly string[] PluralKinds = { "scalar", "image", "mask" };

        public string Name;
        public string Kind;
        public string Dtype;
        public IReadOnlyList<object> Shape;            // a long or a symbol
        public double[] Defaults = new double[0];      // of a scalar: one value, or one for each stage
        public double? Minimum;                        // of a scalar; null where any finite number will do
        public double? Maximum;
        public long? MaxTokens;                        // of a text, where the input is features; null: any number

        public bool PerImage { get { return Shape.Count > 0 && "B".Equals(Shape[0]); } }

        public bool IsTensor
        {
            get { return Array.IndexOf(Kinds, Kind) > Array.IndexOf(Kinds, "scalar") && Kind != "size"; }
        }

        /// <summary>The same input with numbers for symbols of its shape.</summary>
        public RequestInput Resolved(Dictionary<string, long> symbols)
        {
            var item = (RequestInput)MemberwiseClone();
            item.Shape = SizedModel.Resolved(Shape, symbols);
            return item;
        }

        /// <summary>The product of the sizes in numbers: of uniforms [B, L], L.</summary>
        public long RowValues { get { return Shape.OfType<long>().Aggregate(1L, (product, size) => product * size); } }

        /// <summary>Whether a scalar may have a value; NaN is refused.</summary>
        public bool Allows(double value)
        {
            return value >= (Minimum ?? -float.MaxValue) && value <= (Maximum ?? float.MaxValue);
        }

        /// <summary>What a scalar's values may be, in words.</summary>
        public string Limits
        {
            get
            {
                if (Minimum != null && Maximum != null) return $"{Show(Minimum.Value)} to {Show(Maximum.Value)}";
                if (Minimum != null) return $"a finite number of at least {Show(Minimum.Value)}";
                return Maximum == null ? "a finite number" : $"a finite number of at most {Show(Maximum.Value)}";
            }
        }

        /// <summary>With 15 digits, or with 17 where it takes those to tell the number from its neighbours.</summary>
        public static string Show(double value)
        {
            string text = value.ToString("g15", CultureInfo.InvariantCulture);
            double same;
            return double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out same)
                && !same.Equals(value) ? value.ToString("g17", CultureInfo.InvariantCulture) : text;
        }
    }

    /// <summary>manifest.json, schema 2 or 1; the parser trusts nothing that it reads.</summary>
    internal sealed class Manifest
    {
        private const int Schema = 2;
        private const int Shown = 8;
        private const long MaxDimension = 1L << 31;
        // Of guidance, where a manifest gives no maximum: logits of a sound model times this stay finite in float32.
        private const double MaxCfgScale = 1000;
        private const long Exact = 1L << 53;  // integers up to here are exact in a double
        private const int MaxClassNames = 100000;
        // Of what one image needs; a real f_hat has 32,768 elements in four dimensions.
        private const int MaxDimensions = 8;
        private const long MaxElements = 1 << 28;
        private const int MaxSizes = 1000;
        private const long MaxRatio = 1000;
        private static readonly string[] FeatureKinds = { "text_features", "negative_features" };
        private const long MaxTokens = 1 << 16;      // of a text
        private const long MaxTextLength = 1 << 20;  // of verify's texts
        private const int MaxPrompt = 10000;         // characters of one of verify's

        public static readonly string[] Roles = { "generate", "stage", "decoder", "encoder", "text_encoder" };
        private static readonly string[] OptionalRoles = { "generate", "encoder", "text_encoder" };
        private static readonly string[] SizeSymbols = { "L", "S", "h", "w", "H", "W" };
        private static readonly Dictionary<string, string[]> KindDtypes = new Dictionary<string, string[]>
        {
            { "label", new[] { "int64" } }, { "uniform", new[] { "float32" } },
            { "smooth_uniform", new[] { "float32" } },
            { "forced_tokens", new[] { "int64" } }, { "scalar", new[] { "float32", "int64" } },
            { "text_features", new[] { "float32" } }, { "text_mask", new[] { "int64" } },
            { "negative_features", new[] { "float32" } }, { "negative_mask", new[] { "int64" } },
            { "size", new[] { "int64" } },
        };

        public string Name { get; private set; }

        public string Recipe { get; private set; }

        public string Licence { get; private set; }

        /// <summary>Of the model, such as "var"; for people.</summary>
        public string Family { get; private set; }

        /// <summary>Where there are several sizes, that of the first.</summary>
        public ModelInfo Model { get; private set; }

        /// <summary>Those that the bundle is built for; none where it has one, the model's.</summary>
        public IReadOnlyList<SizeInfo> Sizes { get; private set; } = new SizeInfo[0];

        /// <summary>Of prompts; null where the bundle has none.</summary>
        public TokenizerInfo Tokenizer { get; private set; }

        public IReadOnlyList<RequestInput> Request { get; private set; }

        public IReadOnlyList<string> ClassNames { get; private set; }

        public IReadOnlyDictionary<string, GraphInfo> Graphs { get; private set; }

        public IReadOnlyDictionary<string, FileEntry> Files { get; private set; }

        /// <summary>The model at each size.</summary>
        public IReadOnlyList<ModelInfo> Models
        {
            get { return Sizes.Select(Model.OfSize).DefaultIfEmpty(Model).ToList(); }
        }

        /// <summary>What the manifest says of one size: its model, and in numbers what it decides of the request and
        /// the states.</summary>
        /// <param name="index">Of a size; 0 where the bundle has one.</param>
        public Manifest OfSize(int index)
        {
            if (Sizes.Count == 0) return this;
            var manifest = (Manifest)MemberwiseClone();
            manifest.Model = Model.OfSize(Sizes[index]);
            Dictionary<string, long> symbols = manifest.Model.Symbols;
            manifest.Request = Request.Select(item => item.Resolved(symbols)).ToList();
            manifest.Graphs = Graphs.ToDictionary(graph => graph.Key, graph => graph.Value.Resolved(symbols));
            return manifest;
        }

        /// <summary>The request's input of a kind; null where it has none.</summary>
        public RequestInput InputOfKind(string kind)
        {
            return Request.FirstOrDefault(item => item.Kind == kind);
        }

        /// <summary>The model at each size; at its own, without symbols, where there are no others.</summary>
        private IReadOnlyList<SizedModel> AtSizes
        {
            get
            {
                return Models.Select(model => Sizes.Count == 0
                    ? new SizedModel { Model = model }
                    : new SizedModel { Model = model, Symbols = model.Symbols }).ToList();
            }
        }

        /// <summary>Parse and check a manifest; keys, graphs and variants that it does not know are ignored.</summary>
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
            Fields filesFields = root.Object("files");
            Dictionary<string, FileEntry> files =
                filesFields.Value.Keys.ToDictionary(name => name, name => ReadFile(filesFields.Object(name)));
            foreach (string name in files.Keys)
                if (!Wording.IsPlainName(name))
                    root.Refuse("files", "plain file names inside the bundle's folder", name);
            var manifest = new Manifest { Files = files };
            if (schema == 1) manifest.ReadSchema1(root);
            else manifest.ReadSchema2(root);
            ModelInfo model = manifest.Model;
            IReadOnlyList<string> names = null;
            if (root.Value.ContainsKey("class_names") && root.Value["class_names"] != null)
            {
                var listed = root.Value["class_names"] as System.Collections.IList;
                if (listed != null && listed.Count > MaxClassNames)
                    root.Refuse("class_names", $"at most {MaxClassNames} names", (long)listed.Count);
                names = root.Items("class_names", (owner, key, value) => owner.AsClassName(key, value));
            }
            if (names != null && names.Count != model.NumClasses)
                root.Refuse("class_names", $"{model.NumClasses} names, as model.num_classes says", (long)names.Count);
            root.Object("versions");
            manifest.Name = root.Text("name");
            manifest.Recipe = root.Object("recipe").Text("name");
            manifest.Licence = root.Text("licence");
            manifest.ClassNames = names;
            return manifest;
        }

        private void ReadSchema2(Fields root)
        {
            Family = root.Text("family");
            Model = ReadModel(root.Object("model"));
            Sizes = ReadSizes(root, Model);
            IReadOnlyList<SizedModel> each = AtSizes;
            Request = ReadRequest(root, each);
            Fields graphs = root.Object("graphs");
            Graphs = Roles.Where(role => !OptionalRoles.Contains(role) || graphs.Value.ContainsKey(role)).ToDictionary(
                role => role,
                role =>
                {
                    Fields variants = graphs.Object(role).Object("variants");
                    GraphInfo graph = ReadGraph(graphs.Object(role), variants.Object("stock"), role, each);
                    object fused = variants.Optional("fused");
                    if (fused != null) graph.Fused = ReadFused(variants.Nested("fused", fused));
                    return graph;
                });
            Tokenizer = ReadTokenizer(root);
            CheckVerify(root.Object("verify"), each);
        }

        /// <summary>Schema 1 knew VAR alone: square stages, six fixed inputs, one file for each graph.</summary>
        private void ReadSchema1(Fields root)
        {
            Family = "var";
            Fields fields = root.Object("model"), graphs = root.Object("graphs"), verify = root.Object("verify");
            IReadOnlyList<long> sides =
                fields.Items("patch_nums", (owner, key, value) => owner.AsInteger(key, value, 1, 4096));
            if (sides.Count == 0 || !sides.SequenceEqual(sides.OrderBy(side => side)))
                fields.Refuse("patch_nums", "side lengths in ascending order", fields.Get("patch_nums"));
            long image = fields.Integer("image_size", 1), latent = fields.Integer("latent_size", 1);
            if (latent != sides[sides.Count - 1])
                fields.Refuse("latent_size", $"{sides[sides.Count - 1]}, the last of patch_nums",
                              fields.Get("latent_size"));
            Model = new ModelInfo(
                fields, 1, sides.Select(side => new HeightWidth(side, side)).ToList(), new HeightWidth(image, image),
                new HeightWidth(latent, latent));
            object[] batch = { "B" }, tokens = { "B", Model.NumTokens }, none = { };
            double entries = Model.VocabSize;
            Request = new[]
            {
                new RequestInput { Name = "class_labels", Kind = "label", Dtype = "int64", Shape = batch },
                new RequestInput { Name = "uniforms", Kind = "uniform", Dtype = "float32", Shape = tokens },
                new RequestInput { Name = "forced_tokens", Kind = "forced_tokens", Dtype = "int64", Shape = tokens },
                new RequestInput { Name = "cfg_scale", Kind = "scalar", Dtype = "float32", Shape = none,
                                   Defaults = new[] { 4.0 }, Minimum = 0, Maximum = MaxCfgScale },
                new RequestInput { Name = "top_k", Kind = "scalar", Dtype = "int64", Shape = none,
                                   Defaults = new[] { Math.Min(900, entries) }, Minimum = 0, Maximum = entries },
                new RequestInput { Name = "top_p", Kind = "scalar", Dtype = "float32", Shape = none,
                                   Defaults = new[] { 0.96 }, Minimum = 0, Maximum = 1 },
            };
            Graphs = Roles.Take(3).ToDictionary(
                role => role, role => ReadGraph(graphs.Object(role), graphs.Object(role), role, AtSizes));
            int labels = CheckLabels(verify, "class_labels");
            CheckTokenMaps(verify, "token_maps", InputOfKind("forced_tokens").RowValues, labels);
            CheckSeed(verify);
            object cfgScale = verify.Get("cfg_scale");
            var number = cfgScale as JsonNumber;
            if (number == null || !(number.AsDouble() >= 0 && number.AsDouble() < Fields.MaxNumber))
                verify.Refuse("cfg_scale", "a number of at least 0", cfgScale);
        }

        private static ModelInfo ReadModel(Fields fields)
        {
            IReadOnlyList<HeightWidth> stages = ReadStageSizes(fields);
            return new ModelInfo(
                fields, 0, stages, ReadSize(fields, "image_size", fields.Get("image_size"), MaxDimension - 1),
                ReadSize(fields, "latent_size", fields.Get("latent_size"), MaxDimension - 1));
        }

        private static IReadOnlyList<HeightWidth> ReadStageSizes(Fields fields)
        {
            IReadOnlyList<HeightWidth> stages =
                fields.Items("stage_sizes", (owner, key, value) => ReadSize(owner, key, value, 4096));
            List<long> tokens = stages.Select(size => size.Height * size.Width).ToList();
            if (tokens.Count == 0 || !tokens.SequenceEqual(tokens.OrderBy(count => count)))
                fields.Refuse("stage_sizes", "[height, width] of each stage, by ascending number of tokens",
                              fields.Get("stage_sizes"));
            return stages;
        }

        /// <summary>The sizes, each of its own for people and for pictures and latents that come without a name, the
        /// first of which is the model's; none where there is no list.</summary>
        private static IReadOnlyList<SizeInfo> ReadSizes(Fields root, ModelInfo model)
        {
            var sizes = new List<SizeInfo>();
            object listed = root.Optional("sizes");
            if (listed == null) return sizes;
            var list = listed as List<object>;
            if (list != null && (list.Count == 0 || list.Count > MaxSizes))
                root.Refuse("sizes", $"1 to {MaxSizes} sizes", (long)list.Count);
            root.Items("sizes", (owner, key, value) =>
            {
                Fields fields = owner.Nested(key, value);
                SizeInfo size = ReadSizeInfo(fields);
                foreach (SizeInfo other in sizes)
                {
                    string shared =
                        other.Megapixels.Equals(size.Megapixels) && other.Ratio.Equals(size.Ratio) ? "ratio"
                        : other.ImageSize.Equals(size.ImageSize) ? "image_size"
                        : other.LatentSize.Equals(size.LatentSize) ? "latent_size" : null;
                    if (shared != null)
                        fields.Refuse(shared, "another than those of the sizes before", fields.Get(shared));
                }
                string differs = sizes.Count > 0 ? null
                    : !size.StageSizes.SequenceEqual(model.StageSizes) ? "stage_sizes"
                    : !size.ImageSize.Equals(model.ImageSize) ? "image_size"
                    : !size.LatentSize.Equals(model.LatentSize) ? "latent_size" : null;
                if (differs != null)
                    fields.Refuse(differs, $"model.{differs}, which is the first size's", fields.Get(differs));
                sizes.Add(size);
                return true;
            });
            return sizes;
        }

        private static SizeInfo ReadSizeInfo(Fields fields)
        {
            string area = fields.Text("area");
            HeightWidth ratio = ReadSize(fields, "ratio", fields.Get("ratio"), MaxRatio);
            if (SizeInfo.MegapixelsOf(area) == null) fields.Refuse("area", "megapixels such as \"0.25M\"", area);
            if (SizeInfo.Common(ratio.Height, ratio.Width) != 1)
                fields.Refuse("ratio", "[height, width] in lowest terms", fields.Get("ratio"));
            return new SizeInfo(
                area, ratio, ReadSize(fields, "image_size", fields.Get("image_size"), MaxDimension - 1),
                ReadSize(fields, "latent_size", fields.Get("latent_size"), MaxDimension - 1), ReadStageSizes(fields));
        }

        private TokenizerInfo ReadTokenizer(Fields root)
        {
            object value = root.Optional("tokenizer");
            if (value == null) return null;
            Fields fields = root.Nested("tokenizer", value);
            var tokenizer = new TokenizerInfo { Kind = fields.Text("kind") };
            if (tokenizer.Kind != "bytes" && tokenizer.Kind != "sentencepiece") return tokenizer;
            tokenizer.MaxTokens = fields.Integer("max_tokens", 1, MaxTokens);
            RequestInput less = Request.FirstOrDefault(item => item.MaxTokens < tokenizer.MaxTokens);
            if (less != null)
                fields.Refuse("max_tokens", $"at most {less.MaxTokens}, as {less.Name} has", tokenizer.MaxTokens);
            if (tokenizer.Kind == "bytes") return tokenizer;
            tokenizer.File = fields.Text("file");
            if (!Files.ContainsKey(tokenizer.File))
                fields.Refuse("file", "a plain file name that \"files\" lists", tokenizer.File);
            return tokenizer;
        }

        private static HeightWidth ReadSize(Fields owner, string key, object value, long maximum)
        {
            var list = value as List<object>;
            if (list == null || list.Count != 2) owner.Refuse(key, "[height, width]", value);
            return new HeightWidth(owner.AsInteger(key + "[0]", list[0], 1, maximum),
                                   owner.AsInteger(key + "[1]", list[1], 1, maximum));
        }

        private static IReadOnlyList<RequestInput> ReadRequest(Fields root, IReadOnlyList<SizedModel> sizes)
        {
            var request = new List<RequestInput>();
            var places = new Dictionary<string, Fields>();  // of the inputs, by kind
            root.Items("request", (owner, key, value) =>
            {
                Fields fields = owner.Nested(key, value);
                RequestInput item = ReadInput(fields, sizes);
                if (request.Any(other => other.Name == item.Name))
                    fields.Refuse("name", "a name of its own", item.Name);
                if (!RequestInput.PluralKinds.Contains(item.Kind) && places.ContainsKey(item.Kind))
                    fields.Refuse("kind", "no second input of its kind", item.Kind);
                if (item.Kind == "label" && sizes[0].Model.NumClasses == 0)
                    fields.Refuse("kind", "no label, since model.num_classes is 0", item.Kind);
                request.Add(item);
                places[item.Kind] = fields;
                return true;
            });
            if (!places.ContainsKey("forced_tokens"))
                root.Refuse("request", "an input of kind forced_tokens", root.Get("request"));
            bool several = sizes[0].Symbols.Count > 0;
            if (several != places.ContainsKey("size"))
                root.Refuse("request", several
                    ? "an input of kind size" : "no input of kind size, since there is no list of sizes",
                    root.Get("request"));
            CheckTexts(places, request);
            return request;
        }

        /// <summary>Refuse masks without features, negative features without any, and shapes that differ between them.
        /// </summary>
        private static void CheckTexts(Dictionary<string, Fields> places, List<RequestInput> request)
        {
            Func<string, RequestInput> input = kind => request.First(item => item.Kind == kind);
            Action<string, string, string> refuse =
                (kind, key, expected) => places[kind].Refuse(key, expected, places[kind].Get(key));
            foreach (string features in FeatureKinds)
            {
                string mask = features.Replace("features", "mask");
                if (!places.ContainsKey(mask)) continue;
                if (!places.ContainsKey(features)) refuse(mask, "kind", $"no {mask} without {features}");
                if (!input(mask).Shape.SequenceEqual(input(features).Shape.Take(2)))
                    refuse(mask, "shape", $"the first two dimensions of {input(features).Name}");
            }
            if (!places.ContainsKey("negative_features")) return;
            if (!places.ContainsKey("text_features"))
                refuse("negative_features", "kind", "no negative_features without text_features");
            RequestInput text = input("text_features"), negative = input("negative_features");
            if (!text.Shape[2].Equals(negative.Shape[2]) || text.Shape[1].Equals(negative.Shape[1]))
                refuse("negative_features", "shape", $"\"B\", another symbol than {text.Name} has, and its width");
        }

        private static RequestInput ReadInput(Fields fields, IReadOnlyList<SizedModel> sizes)
        {
            string[] dtypes;
            var item = new RequestInput { Name = fields.Text("name"), Kind = fields.OneOf("kind", RequestInput.Kinds) };
            item.Dtype = KindDtypes.TryGetValue(item.Kind, out dtypes) ? fields.OneOf("dtype", dtypes) : fields.Dtype();
            item.Shape = fields.Items("shape", (owner, key, value) => value is string
                ? owner.AsText(key, value) : (object)owner.AsInteger(key, value, 1, MaxDimension));
            foreach (SizedModel size in sizes) CheckShape(fields, item.Resolved(size.Symbols), size);
            if (FeatureKinds.Contains(item.Kind) && fields.Optional("max_tokens") != null)
                item.MaxTokens = fields.Integer("max_tokens", 1, MaxTokens);
            if (item.Kind != "scalar") return item;
            item.Minimum = ReadBound(fields, "minimum", item.Dtype);
            item.Maximum = ReadBound(fields, "maximum", item.Dtype);
            // As bundles say that were built before there was a largest one.
            if (item.Name == "cfg_scale" && item.Maximum == null) item.Maximum = MaxCfgScale;
            item.Defaults = ReadScalars(fields, "default", item);
            return item;
        }

        /// <param name="item">With the size's numbers in its shape.</param>
        private static void CheckShape(Fields fields, RequestInput item, SizedModel size)
        {
            IReadOnlyList<object> shape = item.Shape;
            ModelInfo model = size.Model;
            CheckElements(fields, "shape", shape);
            bool several = size.Symbols.Count > 0, rows = item.PerImage && shape.Skip(1).Any();
            bool text = rows && shape[1] is string && !SizeSymbols.Contains(shape[1])
                && !new[] { "B", "2B" }.Contains(shape[1]);
            rows = rows && shape.Skip(1).All(dimension => dimension is long);
            string tokens = several ? "\"L\"" : $"{model.NumTokens}", stages = several ? "\"S\"" : $"{model.NumStages}";
            bool fits;
            string expected;
            switch (item.Kind)
            {
                case "label":
                    expected = "[\"B\"]";
                    fits = item.PerImage && shape.Count == 1;
                    break;
                case "uniform":
                    expected = "\"B\" and sizes";
                    fits = rows;
                    break;
                case "smooth_uniform":
                    expected = $"\"B\", {tokens} and {model.VocabSize}";
                    fits = rows && shape.Count == 3 && (long)shape[1] == model.NumTokens
                        && (long)shape[2] == model.VocabSize;
                    break;
                case "forced_tokens":
                    expected = $"\"B\", {tokens} and further sizes";
                    fits = rows && (long)shape[1] == model.NumTokens;
                    break;
                case "scalar":
                    expected = $"[] or [{stages}]";
                    fits = shape.Count <= 1 && shape.All(dimension => ((long)model.NumStages).Equals(dimension));
                    break;
                case "text_features":
                case "negative_features":
                    expected = "\"B\", a symbol and a size";
                    fits = text && shape.Count == 3 && shape[2] is long;
                    break;
                case "text_mask":
                case "negative_mask":
                    expected = "\"B\" and a symbol";
                    fits = text && shape.Count == 2;
                    break;
                case "size":
                    expected = "[]";
                    fits = shape.Count == 0;
                    break;
                default:
                    expected = "\"B\" first or nowhere";
                    fits = !shape.Skip(1).Contains("B");
                    break;
            }
            if (!fits) fields.Refuse("shape", expected, fields.Get("shape"));
        }

        private static double? ReadBound(Fields fields, string key, string dtype)
        {
            object value = fields.Optional(key);
            return value == null ? (double?)null : ReadScalar(fields, key, value, dtype);
        }

        private static double ReadScalar(Fields owner, string key, object value, string dtype)
        {
            if (dtype == "int64") return owner.AsInteger(key, value, -Exact, Exact);
            double number = owner.AsNumber(key, value);
            if (Math.Abs(number) > float.MaxValue) owner.Refuse(key, "a number of float32", value);
            return number;
        }

        /// <summary>One value, or one for each stage where the input's shape says so in numbers; all within its limits.
        /// </summary>
        private static double[] ReadScalars(Fields fields, string key, RequestInput item)
        {
            object value = fields.Get(key);
            bool listed = item.Shape.Count > 0 && value is List<object>;
            if (listed && item.Shape[0] is string)
                fields.Refuse(key, "one number, since sizes differ in their stages", value);
            double[] values = listed
                ? fields.Items(key, (owner, place, number) => ReadScalar(owner, place, number, item.Dtype)).ToArray()
                : new[] { ReadScalar(fields, key, value, item.Dtype) };
            if (listed && values.Length != item.RowValues)
                fields.Refuse(key, $"one number, or {item.RowValues}, one for each stage", value);
            if (!values.All(item.Allows)) fields.Refuse(key, item.Limits, value);
            return values;
        }

        /// <summary>Refuse a shape beyond what any model needs.</summary>
        private static void CheckElements(Fields fields, string key, IReadOnlyList<object> shape)
        {
            long elements = 1;
            foreach (long size in shape.OfType<long>().Where(size => size > 0))
                elements = Math.Min(elements * Math.Min(size, MaxElements + 1), MaxElements + 1);
            if (shape.Count > MaxDimensions || elements > MaxElements)
                fields.Refuse(key, $"at most {MaxDimensions} dimensions of {MaxElements} elements in all",
                              fields.Get(key));
        }

        private static FileEntry ReadFile(Fields fields)
        {
            string sha256 = fields.Text("sha256").ToLowerInvariant();
            if (!Regex.IsMatch(sha256, @"\A[0-9a-f]{64}\z")) fields.Refuse("sha256", "64 hexadecimal digits", sha256);
            return new FileEntry { Size = fields.Integer("size"), Sha256 = sha256 };
        }

        private FusedInfo ReadFused(Fields fields)
        {
            string file = fields.Text("file");
            if (!Files.ContainsKey(file)) fields.Refuse("file", "a plain file name that \"files\" lists", file);
            Fields operators = fields.Object("operators");
            return new FusedInfo
            {
                File = file,
                Operators = operators.Value.Keys.Select(
                    domain => new KeyValuePair<string, long>(domain, operators.Integer(domain, 1))).ToList(),
            };
        }

        /// <summary>Read one graph; it must have the contract's inputs and outputs, or a host could not run it. More
        /// outputs do no harm: a bundle made for debugging has them.</summary>
        /// <param name="variant">Names its file.</param>
        /// <param name="sizes">At each of which its states must be of a size that can be.</param>
        private GraphInfo ReadGraph(Fields fields, Fields variant, string name, IReadOnlyList<SizedModel> sizes)
        {
            string file = variant.Text("file");
            if (!Files.ContainsKey(file)) variant.Refuse("file", "a plain file name that \"files\" lists", file);
            IReadOnlyList<StateInfo> state = name != "stage" ? new StateInfo[0]
                : fields.Items("state", (owner, key, value) => ReadState(owner.Nested(key, value), sizes));
            var graph = new GraphInfo
            {
                File = file,
                Inputs = fields.Items("inputs", ReadTensor),
                Outputs = fields.Items("outputs", ReadTensor),
                State = state,
            };
            // An input of these kinds may be for the encoder alone.
            IEnumerable<RequestInput> taken = Request.Where(
                item => (item.Kind != "image" && item.Kind != "mask")
                    || graph.Inputs.Any(tensor => tensor.Name == item.Name));
            Contract inputs, outputs;
            if (name == "generate")
            {
                inputs = Contract.Of(taken);
                outputs = new Contract { { "images", "uint8" }, { "token_maps", "int64" } };
            }
            else if (name == "stage")
            {
                inputs = Contract.Of(taken);
                inputs["stage"] = "int64";
                outputs = new Contract { { "tokens", "int64" }, { "logits", "float32" } };
                foreach (StateInfo item in state)
                {
                    inputs[item.Input] = item.Dtype;
                    outputs[item.Output] = item.Dtype;
                }
            }
            else if (name == "encoder")
            {
                inputs = new Contract { { "images", "uint8" } };
                RequestInput size = InputOfKind("size");
                if (size != null) inputs[size.Name] = size.Dtype;
                outputs = new Contract { { "token_maps", "int64" } };
            }
            else if (name == "text_encoder")
            {
                inputs = new Contract { { "token_ids", "int64" } };
                outputs = new Contract { { "text_features", "float32" } };
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
            if (name == "text_encoder") CheckTextEncoder(fields, graph);
            return graph;
        }

        /// <summary>Refuse a text encoder whose features the request does not take.</summary>
        private void CheckTextEncoder(Fields fields, GraphInfo graph)
        {
            TensorInfo made = graph.Outputs.First(tensor => tensor.Name == "text_features");
            RequestInput taken = InputOfKind("text_features");
            if (taken == null)
                fields.Refuse("outputs", "no text_encoder, since the request has no text_features",
                              fields.Get("outputs"));
            if (made.Shape.Count != taken.Shape.Count || !taken.Shape[2].Equals(made.Shape.Last()))
                fields.Refuse("outputs", $"text_features of width {taken.Shape[2]}, as the request has",
                              made.Shape.ToList());
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

        private static StateInfo ReadState(Fields fields, IReadOnlyList<SizedModel> sizes)
        {
            string[] known = new[] { "B", "2B" }.Concat(sizes[0].Symbols.Keys).ToArray();
            IReadOnlyList<object> shape = fields.Items("initial_shape", (_, place, size) =>
                known.Contains(size) ? size : fields.AsInteger(place, size, 0, MaxDimension));
            foreach (SizedModel size in sizes)
                CheckElements(fields, "initial_shape", SizedModel.Resolved(shape, size.Symbols));
            return new StateInfo
            {
                Input = fields.Text("input"),
                Output = fields.Text("output"),
                Dtype = fields.Dtype(),
                InitialShape = shape,
            };
        }

        /// <summary>The record of a generation made at build time: checked as a part of the manifest, then let go.
        /// </summary>
        private void CheckVerify(Fields fields, IReadOnlyList<SizedModel> sizes)
        {
            Fields inputs = fields.Object("inputs");
            RequestInput size = InputOfKind("size"), label = InputOfKind("label");
            long index = size == null || inputs.Optional(size.Name) == null
                ? 0 : inputs.Integer(size.Name, 0, sizes.Count - 1);
            SizedModel at = sizes[(int)index];
            List<RequestInput> known = Request.Select(item => item.Resolved(at.Symbols)).ToList();
            var images = new SortedSet<long>();  // that the inputs and the texts tell
            foreach (string name in inputs.Value.Keys)
            {
                RequestInput item = known.FirstOrDefault(other => other.Name == name);
                if (item == null)
                {
                    string names = string.Join(", ", known.Select(other => other.Name));
                    inputs.Refuse(name, $"an input of the request as its key: {names}", inputs.Get(name));
                }
                if (item.Kind == "scalar") ReadScalars(inputs, name, item);
                else if (item.Kind == "label") images.Add(CheckLabels(inputs, name));
                else if (item.Kind != "size")
                {
                    int rows = inputs.Items(name, (owner, key, value) => true).Count;
                    if (item.IsTensor && !RequestInput.PluralKinds.Contains(item.Kind)) images.Add(rows);
                }
            }
            if (label != null) inputs.Get(label.Name);
            int? texts = CheckVerifyTexts(fields, inputs);
            if (texts != null) images.Add(texts.Value);
            if (images.Count > 1)
                fields.Refuse("", "as many labels and texts as images",
                              images.Select(count => (object)count).ToList());
            long values = known.First(item => item.Kind == "forced_tokens").RowValues;
            long? expected = images.Count == 0 ? (long?)null : images.Min;
            long maps = CheckTokenMaps(fields, "token_maps", values, expected, label != null ? "labels" : "texts");
            // What the encoder makes of the pictures.
            if (fields.Optional("encoded") != null) CheckTokenMaps(fields, "encoded", values, maps);
            CheckSeed(fields);
        }

        /// <summary>The texts of that record, if inputs tell none: prompts, or lengths of texts whose features follow
        /// from a formula.</summary>
        /// <returns>How many there are; null where inputs tell it, or there are no texts.</returns>
        private int? CheckVerifyTexts(Fields fields, Fields inputs)
        {
            RequestInput features = InputOfKind("text_features");
            string[] told = new[] { "prompts", "text_lengths" }.Where(key => fields.Optional(key) != null).ToArray();
            if (features == null && told.Length > 0)
                fields.Refuse(told[0], "no text, since the request has none", fields.Get(told[0]));
            if (features == null) return null;
            if (told.Length + (inputs.Value.ContainsKey(features.Name) ? 1 : 0) != 1)
                fields.Refuse("", $"one of inputs.{features.Name}, prompts and text_lengths",
                              fields.Value.Keys.Select(key => (object)key).ToList());
            if (told.Length == 0) return null;
            if (told[0] == "prompts")
            {
                if (!Graphs.ContainsKey("text_encoder"))
                    fields.Refuse("prompts", "no prompts, since the bundle has no text encoder", fields.Get("prompts"));
                int prompts = fields.Items("prompts", (owner, key, value) =>
                {
                    string prompt = owner.AsText(key, value);
                    int characters = prompt.Length - prompt.Count(char.IsLowSurrogate);
                    if (characters < 1 || characters > MaxPrompt)
                        owner.Refuse(key, $"1 to {MaxPrompt} characters", value);
                    return true;
                }).Count;
                if (prompts == 0) fields.Refuse("prompts", "at least one prompt", fields.Get("prompts"));
                return prompts;
            }
            IReadOnlyList<long> lengths = fields.Items(
                "text_lengths", (owner, key, value) => owner.AsInteger(key, value, 1, MaxTextLength));
            if (lengths.Count == 0) fields.Refuse("text_lengths", "at least one length", fields.Get("text_lengths"));
            CheckElements(fields, "text_lengths", new[] { (long)lengths.Count, lengths.Max(), features.Shape[2] });
            return lengths.Count;
        }

        /// <returns>How many labels there are.</returns>
        private int CheckLabels(Fields fields, string name)
        {
            int labels = fields.Items(
                name, (owner, key, value) => owner.AsInteger(key, value, 0, Model.NumClasses)).Count;
            if (labels == 0) fields.Refuse(name, "at least one label", fields.Get(name));
            return labels;
        }

        /// <param name="values">Of a token map.</param>
        /// <param name="images">How many token maps there must be; null for any number above 0.</param>
        /// <param name="of">What tells that number.</param>
        /// <returns>How many there are.</returns>
        private int CheckTokenMaps(Fields fields, string name, long values, long? images, string of = "labels")
        {
            int rows = fields.Items(name, (owner, key, value) =>
            {
                var row = value as List<object>;
                if (row == null || row.Count != values) owner.Refuse(key, $"a list of {values} tokens", value);
                for (int i = 0; i < row.Count; i++) owner.AsInteger($"{key}[{i}]", row[i], 0, Model.VocabSize - 1);
                return true;
            }).Count;
            if (images == null ? rows == 0 : rows != images)
                fields.Refuse(name, images == null ? "at least one row" : $"one row for each of {images} {of}",
                              (long)rows);
            return rows;
        }

        private static void CheckSeed(Fields fields)
        {
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
            public static Contract Of(IEnumerable<RequestInput> request)
            {
                var contract = new Contract();
                foreach (RequestInput item in request) contract[item.Name] = item.Dtype;
                return contract;
            }

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
        public const double MaxNumber = 1e100;
        public const int MaxClassName = 1000;  // bytes

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

        /// <summary>The value of a key that may be missing or null; then it is null.</summary>
        public object Optional(string key)
        {
            object value;
            Value.TryGetValue(key, out value);
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

        public string AsClassName(string key, object value)
        {
            string name = AsText(key, value);
            if (Encoding.UTF8.GetByteCount(name) > MaxClassName)
                Refuse(key, $"a name of at most {MaxClassName} bytes", name);
            return name;
        }

        /// <summary>A finite number, below 1e100 in size.</summary>
        public double AsNumber(string key, object value)
        {
            var number = value as JsonNumber;
            if (number == null || !(Math.Abs(number.AsDouble()) < MaxNumber)) Refuse(key, "a finite number", value);
            return number.AsDouble();
        }

        public string OneOf(string key, IEnumerable<string> words)
        {
            string word = Text(key);
            if (!words.Contains(word)) Refuse(key, "one of " + string.Join(", ", words), word);
            return word;
        }

        public string Dtype()
        {
            return OneOf("dtype", SessionLoader.ElementTypes.Keys);
        }

        public IReadOnlyList<T> Items<T>(string key, Func<Fields, string, object, T> read)
        {
            object value = Get(key);
            var list = value as List<object>;
            if (list == null) Refuse(key, "a list", value);
            return list.Select((item, index) => read(this, $"{key}[{index}]", item)).ToList();
        }

        /// <summary>The path of a key; of no key, that of the object itself.</summary>
        private string PathOf(string key)
        {
            return Wording.Printable(path.Length == 0 ? key : key.Length == 0 ? path : $"{path}.{key}");
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
            string shortage = Shortage(error);
            if (shortage != null) return shortage;
            string text = Printable(Regex.Replace(error.Message, @"\s+", " ").Trim());
            text = Regex.Replace(text, @"^\[ErrorCode:\w+\] ", "");
            return text.Length > 300 ? text.Substring(0, 300) : text;
        }

        /// <summary>What to say where ONNX Runtime failed for want of memory or threads; null: for another reason.
        /// </summary>
        public static string Shortage(Exception error)
        {
            if (error is OutOfMemoryException || error.Message.Contains("std::bad_alloc")
                || error.Message.Contains("Failed to allocate memory"))
                return "out of memory: fewer images at a time, fewer threads or no memory arena need less";
            return error.Message.Contains("pthread_create failed")
                ? "the system starts no more threads: ask for fewer"
                : null;
        }

        /// <summary>Without what could move a terminal's cursor or start a new line.</summary>
        public static string Printable(string text)
        {
            return IsPrintable(text) ? text : new string(text.Select(c => c >= ' ' && c <= '~' ? c : '?').ToArray());
        }

        /// <summary>With escapes for what is no printable character, cut after `limit` of them.</summary>
        public static string Shown(string text, int limit = 80)
        {
            var shown = new StringBuilder();
            for (int at = 0, length; at < text.Length; at += length, limit--)
            {
                if (limit == 0) return shown.Append('\u2026').ToString();
                length = char.IsSurrogatePair(text, at) ? 2 : 1;
                string character = text.Substring(at, length);
                int escape = "\t\n\r".IndexOf(text[at]);
                if (IsPrintable(character)) shown.Append(character);
                else if (escape >= 0) shown.Append('\\').Append("tnr"[escape]);
                else if (length == 2) shown.Append($"\\U{char.ConvertToUtf32(text, at):x8}");
                else shown.Append(text[at] < 256 ? $"\\x{(int)text[at]:x2}" : $"\\u{(int)text[at]:x4}");
            }
            return shown.ToString();
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
