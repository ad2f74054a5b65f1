"""What a processor is taken for, by its features as systems write them."""

import platform
from pathlib import Path

import pytest

from monograph.runtime.instruction_sets import (
    InstructionSet,
    flags_of_cpuinfo,
    instruction_set_here,
    instruction_set_of,
    processor_flags,
)
from monograph.runtime.targets import TARGETS, find_target

SANDY_BRIDGE = "sse4_1 sse4_2 avx"
HASWELL = f"{SANDY_BRIDGE} fma avx2"
SKYLAKE_X = f"{HASWELL} avx512f avx512dq avx512cd avx512bw avx512vl"


@pytest.mark.parametrize(
    ("flags", "machine", "expected"),
    [
        ("sse sse2", "x86_64", None),
        ("sse4_1 sse4_2", "x86_64", InstructionSet.SSE4_1),
        (SANDY_BRIDGE, "x86_64", InstructionSet.SSE4_1),
        ("sse4_1 avx avx2", "x86_64", InstructionSet.SSE4_1),  # ONNX Runtime wants FMA with AVX2
        (HASWELL, "AMD64", InstructionSet.AVX2),
        (f"{HASWELL} avx512f", "x86_64", InstructionSet.AVX2),  # Knights Landing: not those for bytes
        (SKYLAKE_X, "x86_64", InstructionSet.AVX512),
        (f"{SKYLAKE_X} avx512_vnni", "x86_64", InstructionSet.VNNI),
        (f"{HASWELL} avx_vnni", "x86_64", InstructionSet.VNNI),  # Alder Lake
        ("FPU SSE4.1 SSE4.2 FMA AVX1.0 AVX2", "x86_64", InstructionSet.AVX2),  # macOS
        ("SSE4.1 FMA AVX2 AVX512F AVX512DQ AVX512BW AVX512VL AVX512VNNI", "x86_64", InstructionSet.VNNI),
        ("fp asimd crc32", "aarch64", InstructionSet.ARM64),
        ("fp asimd asimdhp asimddp", "aarch64", InstructionSet.ARM64_DOTPROD),
        ("asimddp", "arm64", InstructionSet.ARM64_DOTPROD),
        ("avx2 fma sse4_1", "riscv64", None),
    ],
)
def test_what_has_these_features(flags: str, machine: str, expected: InstructionSet | None):
    assert instruction_set_of(flags.split(), machine) is expected


def test_only_x86_without_vnni_saturates():
    saturating = {InstructionSet.SSE4_1, InstructionSet.AVX2, InstructionSet.AVX512}
    assert {one for one in InstructionSet if one.saturates} == saturating


@pytest.mark.parametrize(
    "text", ["processor\t: 0\nflags\t\t: fpu sse4_1\nbugs\t: x\n", "processor\t: 0\nFeatures\t: fpu sse4_1\n"], ids=["x86", "arm"]
)
def test_features_in_cpuinfo(text: str):
    assert flags_of_cpuinfo(text) == ("fpu", "sse4_1")
    assert flags_of_cpuinfo("processor\t: 0\n") == ()


@pytest.mark.skipif(platform.system() != "Linux", reason="macOS has no /proc")
def test_a_system_that_tells_nothing(tmp_path: Path):
    assert processor_flags(tmp_path / "cpuinfo") == ()


def test_this_machine_and_what_targets_run_on():
    here = instruction_set_here()
    assert find_target("cpu").instruction_set() is here
    assert here is None or here in find_target("cpu").describe()
    assert find_target("arm64").instruction_set() is InstructionSet.ARM64_DOTPROD
    assert {name for name, target in TARGETS.items() if target.instruction_set() is not None} >= {"arm64"}
    assert find_target("webgpu").instruction_set() is None
