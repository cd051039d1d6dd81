#!/usr/bin/env bash
# Compile the C# example with Debian's mono into build/csharp, where `nextscale` then runs it.
#
#     [PYTHON=python3] examples/csharp/mono/build.sh
#
# PYTHON has onnxruntime installed; its native library is the one that the programs run on. Debian's packages are
# installed where they are missing. fetch_onnxruntime.py brings the managed half of ONNX Runtime as source (MIT);
# down_level.py rewrites it for mono's C# 7 compiler.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
out=$root/build/csharp
onnxruntime=$root/build/third_party/onnxruntime
python=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python3)}

"$root/examples/install_packages.sh" npm=npm mono-mcs mono-runtime libmono-system-core4.0-cil \
    libmono-system-numerics-vectors4.0-cil libmono-system-drawing4.0-cil
"$python" "$root/examples/fetch_onnxruntime.py" "$onnxruntime" >/dev/null
mkdir -p "$out"

managed=$out/Microsoft.ML.OnnxRuntime.dll
made_with=$(cat "$here/down_level.py" "$here/build.sh" "$onnxruntime/made_from" | sha256sum)
if [ "$(cat "$out/made_with" 2>/dev/null)" != "$made_with" ] || [ ! -f "$managed" ]; then
    sources=$(mktemp -d)
    trap 'rm -rf "$sources"' EXIT
    "$python" "$here/down_level.py" "$onnxruntime/csharp" "$sources"
    mcs -langversion:latest -unsafe -optimize+ -warn:0 -define:NETSTANDARD2_0 -target:library \
        -out:"$managed" -recurse:"$sources/*.cs"
    cp "$onnxruntime/LICENSE" "$out/Microsoft.ML.OnnxRuntime.LICENSE"
    echo "$made_with" >"$out/made_with"
fi
ln -sf "$onnxruntime/lib/libonnxruntime.so" "$out/libonnxruntime.so"

# A program of NAME from SOURCES: NAME.exe, and a script NAME that runs it.
program() {
    local name=$1
    shift
    mcs -langversion:7.2 -optimize+ -warnaserror -r:"$managed" -r:System.Drawing -out:"$out/$name.exe" "$@"
    cat >"$out/$name" <<'RUN'
#!/usr/bin/env bash
here=$(cd "$(dirname "$0")" && pwd)
LD_LIBRARY_PATH=$here${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec mono "$here/$(basename "$0").exe" "$@"
RUN
    chmod +x "$out/$name"
}

library="$root/ports/csharp/NextScale.cs"
program nextscale "$library" "$here"/../*.cs
for source in "$root"/examples/minimal/*.cs; do
    program "$(basename "$source" .cs)" "$library" "$source"
done
echo "$out/nextscale"
