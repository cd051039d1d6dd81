using System;
using System.IO;
using System.Linq;
#if NETCOREAPP
using StbImageWriteSharp;
#else
using System.Drawing;
using System.Drawing.Imaging;
using System.Runtime.InteropServices;
#endif

namespace NextScale
{
    /// <summary>Pictures to PNG files: never half a file.</summary>
    internal static class PngFile
    {
        /// <summary>A path for each of `count` pictures: FILE.png alone, or FILE-0000.png and so on.</summary>
        public static string[] Paths(string path, int count)
        {
            if (!path.EndsWith(".png", StringComparison.OrdinalIgnoreCase))
                throw new NextScaleException(
                    $"cannot write {Wording.Printable(path)}: pictures are written as .png; give such a name");
            string folder = Path.GetDirectoryName(Path.GetFullPath(path));
            if (!Directory.Exists(folder))
                throw new NextScaleException($"cannot write {path}: there is no folder {folder}");
            string stem = path.Substring(0, path.Length - 4);
            return count == 1
                ? new[] { path }
                : Enumerable.Range(0, count).Select(i => $"{stem}-{i:d4}.png").ToArray();
        }

        /// <param name="rgb">height * width * 3 bytes, rows from the top.</param>
        public static void Write(string path, byte[] rgb, int height, int width)
        {
            byte[] content;
            using (var stream = new MemoryStream())
            {
                Encode(stream, rgb, height, width);
                content = stream.ToArray();
            }
            string temporary = Path.Combine(Path.GetDirectoryName(Path.GetFullPath(path)),
                                            $".{Path.GetFileName(path)}.part");
            bool inPlace = IsLinkOrDevice(path);
            try
            {
                File.WriteAllBytes(inPlace ? path : temporary, content);
                if (inPlace) return;
                if (File.Exists(path)) File.Replace(temporary, path, null);
                else File.Move(temporary, path);
            }
            catch (Exception error) when (error is IOException || error is UnauthorizedAccessException)
            {
                if (!inPlace) File.Delete(temporary);
                throw new NextScaleException($"cannot write {path}: {Wording.OneLine(error)}", error);
            }
        }

        /// <summary>Whether a file that is moved there would replace what must stay; a device shows as an empty file.
        /// </summary>
        private static bool IsLinkOrDevice(string path)
        {
            return File.Exists(path)
                && (File.GetAttributes(path).HasFlag(FileAttributes.ReparsePoint) || new FileInfo(path).Length == 0);
        }

#if NETCOREAPP
        private static void Encode(Stream stream, byte[] rgb, int height, int width)
        {
            new ImageWriter().WritePng(rgb, width, height, ColorComponents.RedGreenBlue, stream);
        }
#else
        private static void Encode(Stream stream, byte[] rgb, int height, int width)
        {
            using (var bitmap = new Bitmap(width, height, PixelFormat.Format24bppRgb))
            {
                var whole = new Rectangle(0, 0, width, height);
                BitmapData data = bitmap.LockBits(whole, ImageLockMode.WriteOnly, PixelFormat.Format24bppRgb);
                var row = new byte[width * 3];
                for (int y = 0; y < height; y++)
                {
                    for (int i = 0; i < row.Length; i++) row[i] = rgb[y * row.Length + i / 3 * 3 + 2 - i % 3];  // BGR
                    Marshal.Copy(row, 0, data.Scan0 + y * data.Stride, row.Length);
                }
                bitmap.UnlockBits(data);
                bitmap.Save(stream, ImageFormat.Png);
            }
        }
#endif
    }
}
