// Prompts of bundles whose tokenizer is a model of sentencepiece, by the NuGet package Microsoft.ML.Tokenizers.
//
// UNTESTED: no build of this repository compiles this file or has the package. Copy it beside NextScale.cs, add
// Microsoft.ML.Tokenizers 2.0 or later (earlier ones read no models of the kind "unigram", which T5's are), and before
// you rely on it compare its ids with those of Python, where generator.bundle.tokenizer.encode(prompt) gives the same
// ids and the end, 1, behind them:
//
//     var options = new GeneratorOptions { Tokenizer = new MicrosoftTokenizer("path/to/bundle/spiece.model") };
//     using (var generator = new Generator("path/to/bundle", options)) ...
//
// Prompts to compare, since tokenizers differ in what they do before they look for pieces: two spaces between words,
// "e" with a combining acute accent, full-width letters, an emoji, and a letter that no piece has.

using System.Collections.Generic;
using System.IO;
using System.Linq;

using Microsoft.ML.Tokenizers;

namespace NextScale
{
    /// <summary>The pieces of a sentencepiece model. Several threads may use one.</summary>
    public sealed class MicrosoftTokenizer : ITokenizer
    {
        private readonly SentencePieceTokenizer pieces;

        /// <param name="model">The file that the bundle's manifest names, in the bundle's folder.</param>
        public MicrosoftTokenizer(string model)
        {
            using (Stream file = File.OpenRead(model))
            {
                pieces = SentencePieceTokenizer.Create(file, addBeginningOfSentence: false, addEndOfSentence: false);
            }
        }

        /// <summary>The ids of a prompt; the library of bundles adds the end.</summary>
        public IReadOnlyList<long> Encode(string prompt)
        {
            return pieces.EncodeToIds(prompt, addBeginningOfSentence: false, addEndOfSentence: false)
                .Select(id => (long)id).ToArray();
        }
    }
}
