#!/usr/bin/env python3
"""Compile every kernel and read what the assembler reports: spills, use of the stack, too many registers.

Any of them is a failure. A spilled register goes through memory in the middle of a kernel's loop, and no test
of results notices; nor does one notice that registers leave room for fewer threads than hide the latency of
memory (FAMILIES). With cuobjdump and nvdisasm, on PATH or of their wheels (nvidia-cuda-cuobjdump,
nvidia-cuda-nvdisasm), the machine code is read, too: no kernel may load or store local memory, nor any by a
generic address (the compiler has lost sight of which memory it is, then, and each access asks), and those of
persistent.inc have to multiply on tensor cores.

    scripts/check_ptxas.py [--nvcc NVCC] [--arch 80 90 ...] [FILE.cu ...]

Prints the registers of each kernel and how many it may have; ends with 1 if one is at fault, with 2 if a file
does not compile.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
FLAGS = ["-std=c++17", "-O3", "-Xptxas=-v", "-Werror=all-warnings", "-Xcompiler=-Wall,-Wextra", f"-I{CSRC}"]

# The three or more lines that ptxas -v prints of a kernel. Other functions have no "Used" line.
REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\w+)'\n"
    r".*\n"
    r"\s*(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads\n"
    r".*Used (?P<registers>\d+) registers"
)


# In the listing of cuobjdump -sass: where a function begins, and an instruction, perhaps with its predicate.
FUNCTION = re.compile(r"^\s*Function : (?P<name>\w+)$", re.MULTILINE)
INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?(?P<name>[A-Z][A-Z0-9]*)", re.MULTILINE)

# Registers of a multiprocessor, from compute capability 8.0 on; those that an instruction can name; the unit
# in which a thread gets them.
FILE, MOST, EIGHTS = 65536, 255, 8


@dataclass(frozen=True)
class Family:
    """Kernels that want `ctas` CTAs of `threads` threads on a multiprocessor at once."""

    pattern: str  # found in the kernel's name, mangled or not
    threads: int
    ctas: int

    @property
    def cap(self) -> int:
        """The registers that each thread can have then."""
        return min(FILE // (self.threads * self.ctas) // EIGHTS * EIGHTS, MOST)


# The first that fits counts; the last fits all.
FAMILIES = (
    # One CTA fills a multiprocessor: its registers hold weights.
    Family(r"Persistent", 256, 1),
    # Products: while one CTA waits for the next part of its operands, another one multiplies.
    Family(r"GemmFma", 256, 2),
    Family(r"GemmMma", 128, 4),
    # A warp to a unit: at H = 2048, more than most streams have, 4 CTAs for each multiprocessor of an H200.
    # In double its sums take twice the registers: one CTA less.
    Family(r"StreamStep(Id|<double)", 128, 3),
    Family(r"StreamStep", 128, 4),
    # Bound by memory: an H200 has about 4.8 TB/s x 700 ns / 132 = 25 KB of each multiprocessor under way.
    # With some six loads of 4 bytes in a thread that takes 1024 threads, half of those that there can be.
    Family(r"", 256, 4),
)


def family_of(name: str) -> Family:
    """Return the family of a kernel by its name."""
    return next(family for family in FAMILIES if re.search(family.pattern, name))


@dataclass(frozen=True)
class Kernel:
    """What the assembler says of one kernel for one architecture."""

    name: str
    arch: str
    registers: int
    stack: int
    spilled: int

    @property
    def faults(self) -> list[str]:
        """What is wrong with it, in words."""
        cap = family_of(self.name).cap
        found = []
        if self.spilled or self.stack:
            found.append(f"SPILLS {self.spilled} bytes, stack {self.stack}")
        if self.registers > cap:
            found.append(f"has {self.registers - cap} REGISTERS too many")
        return found


def read_report(text: str) -> list[Kernel]:
    """Find the kernels in the output of nvcc -Xptxas=-v."""
    return [
        Kernel(m["name"], m["arch"], int(m["registers"]), int(m["stack"]), int(m["stores"]) + int(m["loads"]))
        for m in REPORT.finditer(text)
    ]


def wrong_instructions(listing: str) -> list[str]:
    """Find functions with local or generic memory, or no tensor cores where they should; a line for each."""
    wrong = []
    starts = [*FUNCTION.finditer(listing)]
    for i, start in enumerate(starts):
        end = starts[i + 1].start() if i + 1 < len(starts) else len(listing)
        used = {m["name"] for m in INSTRUCTION.finditer(listing, start.end(), end)}
        local = sorted(used & {"LDL", "STL"})
        if local:
            wrong.append(f"{start['name']} has {' and '.join(local)}: it uses local memory")
        generic = sorted(used & {"LD", "ST", "ATOM"})
        if generic:
            wrong.append(f"{start['name']} has {' and '.join(generic)}: it uses generic addresses")
        if "Persistent" in start["name"] and "HMMA" not in used:
            wrong.append(f"{start['name']} has no HMMA: it does not use tensor cores")
    return wrong


def demangled(names: list[str]) -> list[str]:
    """Return the names as they stand in the source, if there is a c++filt."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    run = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    # "void fastrnn::cuda::run_kernel<fastrnn::cuda::LstmForward<float> >(...)" is LstmForward<float>.
    inner = [re.sub(r"^.*run_kernel<(.*?) ?>\(.*$", r"\1", line) for line in run.stdout.splitlines()]
    return [re.sub(r"fastrnn::(cuda::)?", "", name) for name in inner]


def path_with_wheels() -> str:
    """Return PATH, and after it where NVIDIA's wheels in this Python's environment have their programs."""
    wheels = (folder for path in sys.path for folder in Path(path).glob("nvidia/cu1*/bin"))
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, wheels)])


def disassembler() -> str | None:
    """Return cuobjdump, if there is nvdisasm for it too."""
    path = path_with_wheels()
    return shutil.which("cuobjdump", path=path) if shutil.which("nvdisasm", path=path) else None


def compile_one(
    nvcc: str, archs: list[str], cuobjdump: str | None, source: Path
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Compile a file for all architectures; what the compiler says, and the machine code if it is read."""
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS, *codes, "-c", str(source), "-o", f"{folder}/kernels.o"]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode != 0 or cuobjdump is None:
            return run, ""
        command = [cuobjdump, "-sass", f"{folder}/kernels.o"]
        environment = os.environ | {"PATH": path_with_wheels()}  # for nvdisasm, which it runs
        listing = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return run, listing.stdout


def main(arguments: list[str] | None = None) -> int:
    """Run the check; see above."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nvcc", default=os.environ.get("CUDACXX", "nvcc"))
    parser.add_argument("--arch", nargs="+", default=["80", "90"])
    parser.add_argument("files", nargs="*", type=Path, default=sorted((CSRC / "cuda/kernels").glob("*.cu")))
    args = parser.parse_args(arguments)

    kernels: list[Kernel] = []
    wrong: list[str] = []
    listed = 0
    cuobjdump = disassembler()
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        runs = pool.map(lambda source: compile_one(args.nvcc, args.arch, cuobjdump, source), args.files)
        for source, (run, listing) in zip(args.files, runs, strict=True):
            if run.returncode != 0:
                print(f"{source} does not compile:\n{run.stderr}", file=sys.stderr)
                return 2
            found = read_report(run.stderr)
            if not found:
                print(f"{source}: no kernel in the report:\n{run.stderr}", file=sys.stderr)
                return 2
            kernels += found
            wrong += wrong_instructions(listing)
            listed += len(FUNCTION.findall(listing))

    if cuobjdump is None:
        read = "no machine code read: cuobjdump or nvdisasm is missing"
    else:
        read = f"machine code of {listed} read"
        if listed != len(kernels):
            wrong.append(f"cuobjdump lists {listed} functions; the assembler reported {len(kernels)} kernels")
    failed = bool(wrong)
    print(f"{'kernel':60} {'arch':8} registers, at most")
    for kernel, name in zip(kernels, demangled([k.name for k in kernels]), strict=True):
        failed |= bool(kernel.faults)
        counts = f"{kernel.registers:9} {family_of(kernel.name).cap:8}"
        print("  ".join([f"{name:60} {kernel.arch:8} {counts}", *kernel.faults]))
    print("\n".join(wrong), end="\n" * bool(wrong))
    verdict = "with faults" if failed else "no spills, none over its cap"
    print(f"{len(kernels)} kernels, {verdict}, {read}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
