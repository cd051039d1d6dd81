#!/usr/bin/env bash
# Compile the C# example with Debian's mono into build/csharp, where `nextscale` then runs it.
#
#     [PYTHON=python3] examples/csharp/mono/build.sh
#
# PYTHON has onnxruntime installed; its native library is the one that the program runs on. Debian's packages are
# installed where they are missing. The managed half of ONNX Runtime comes as source from an npm package (MIT); it is
# rewritten for mono's C# 7 compiler by down_level.py.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
out=$root/build/csharp
python=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python3)}
debian=(mono-mcs mono-runtime libmono-system-core4.0-cil libmono-system-numerics-vectors4.0-cil
    libmono-system-drawing4.0-cil)
package=com.github.asus4.onnxruntime
version=0.4.9
sha256=e59788788818fdde1b2e522e766a21ba0f7d8391de55737abf81e32cc801785d

mkdir -p "$out"
command -v npm >/dev/null || debian+=(npm)
if ! dpkg -s "${debian[@]}" >/dev/null 2>&1; then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -qq --no-install-recommends "${debian[@]}" >/dev/null
fi

managed=$out/Microsoft.ML.OnnxRuntime.dll
made_with=$(cat "$here/down_level.py" "$here/build.sh" | sha256sum)
if [ "$(cat "$out/made_with" 2>/dev/null)" != "$made_with" ] || [ ! -f "$managed" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    (cd "$work" && npm pack --silent "$package@$version" >/dev/null)
    archive=$work/$package-$version.tgz
    echo "$sha256  $archive" | sha256sum --check --quiet
    tar -xzf "$archive" -C "$work" package/Runtime package/LICENSE
    rm -rf "$work/package/Runtime/Training"
    "$python" "$here/down_level.py" "$work/package/Runtime" "$work/sources"
    mcs -langversion:latest -unsafe -optimize+ -warn:0 -define:NETSTANDARD2_0 -target:library \
        -out:"$managed" -recurse:"$work/sources/*.cs"
    cp "$work/package/LICENSE" "$out/Microsoft.ML.OnnxRuntime.LICENSE"
    echo "$made_with" >"$out/made_with"
fi

mcs -langversion:7.2 -optimize+ -warnaserror -r:"$managed" -r:System.Drawing -out:"$out/nextscale.exe" \
    "$here"/../*.cs

library=$("$python" - <<'PYTHON'
import pathlib

import onnxruntime

print(next((pathlib.Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")))
PYTHON
)
ln -sf "$library" "$out/libonnxruntime.so"
cat >"$out/nextscale" <<'RUN'
#!/usr/bin/env bash
here=$(cd "$(dirname "$0")" && pwd)
LD_LIBRARY_PATH=$here${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec mono "$here/nextscale.exe" "$@"
RUN
chmod +x "$out/nextscale"
echo "$out/nextscale"
