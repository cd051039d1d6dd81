"""The kernels of AVX2 written with intrinsics, as they are, and with Highway: speed, compile time, size, bits.

    python benchmarks/highway_speed.py HIGHWAY [--seconds 2] [--threads 1]

HIGHWAY is a checkout of https://github.com/google/highway. kernels/ is built twice in a temporary folder, once with
benchmarks/highway/vector_avx2.h in place of the vectors of AVX2. Everything else is the same source, the integer
product of AVX2 included, which takes registers as they are. Each build's kernels_check compares its bits with those of
portable C++. Operators are those of operator_speed.py, in one interleaved run. Prints Markdown. Needs CMake and a
compiler, and ONNX Runtime's headers as kernels/README.md tells.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from operator_speed import ROOT, cases, header, measured, runner

HEADER = ROOT / "benchmarks" / "highway" / "vector_avx2.h"
# What Highway's target AVX2 takes for granted beside -mavx2 and -mfma.
FLAGS = "-mbmi -mbmi2 -mf16c -maes -mpclmul -DHWY_COMPILE_ONLY_STATIC -isystem {}"
CHECK = ("--seed", 1, "--seconds", 10)
KERNELS = "CMakeFiles/nextscale_kernels.dir/src/isa/avx2.cc.o"


def build(sources: Path, flags: str) -> tuple[Path, float]:
    """The folder of a build, and the seconds that the kernels of AVX2 take to compile (least of three)."""
    folder = sources / "build"
    headers = ROOT / "build" / "third_party" / "onnxruntime" / "include"
    options = ["-DNEXTSCALE_OPS_TESTS=ON", f"-DONNXRUNTIME_INCLUDE={headers}", f"-DCMAKE_CXX_FLAGS={flags}"]
    run("cmake", "-S", sources, "-B", folder, *options)
    run("cmake", "--build", folder, "--parallel", os.cpu_count())
    seconds = []
    for _ in range(3):
        (folder / KERNELS).unlink()
        begin = time.perf_counter()
        run("cmake", "--build", folder, "--target", "nextscale_kernels")
        seconds.append(time.perf_counter() - begin)
    return folder, min(seconds)


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"error: {' '.join(map(str, command))}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("highway", type=Path)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 256], help="of a row")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a case")
    settings = parser.parse_args()
    os.environ["NEXTSCALE_OPS_ISA"] = "avx2"
    print("\n".join(header()[:4]))
    print("\n| kernels of AVX2 | seconds to compile | bytes of code | kernels_check |\n|---|---|---|---|")
    libraries = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, flags in (("intrinsics", ""), ("Highway", FLAGS.format(settings.highway.resolve()))):
            sources = Path(temporary) / name
            shutil.copytree(ROOT / "kernels", sources)
            if flags:
                shutil.copy(HEADER, sources / "src" / "vector" / "avx2.h")
            folder, seconds = build(sources, flags)
            libraries[name] = folder / "libnextscale_ops.so"
            size = run("size", folder / KERNELS).splitlines()[1].split()[0]
            checked = run(folder / "kernels_check", *CHECK).splitlines()[-1]
            print(f"| {name} | {seconds:.1f} | {size} | {checked} |", flush=True)
        print("\nTimes are minimum / median in ms of one layer; the ratio is intrinsics over Highway, of the minima.\n")
        print("| operator | stock | intrinsics | Highway | ratio |\n|---|---|---|---|---|")
        for make in itertools.chain.from_iterable(map(cases, settings.tokens)):
            case = make()
            contenders = {"stock": runner(case.stock, settings.threads, libraries["intrinsics"])}
            for name, library in libraries.items():
                contenders[name] = runner(case.fused, settings.threads, library)
            times = measured(contenders, settings.seconds)
            cells = [f"{min(t) / case.layers:.3f} / {statistics.median(t) / case.layers:.3f}" for t in times.values()]
            ratio = min(times["intrinsics"]) / min(times["Highway"])
            print(f"| {case.name} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
