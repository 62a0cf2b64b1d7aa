"""The instructions of a kernel, counted in what cuobjdump prints."""

import issue_slots
import pytest

from softpool3d.errors import UsageError

# loads 16 bytes; leaves where there is nothing to do, or computes and stores 4; a slow way reads again
KERNEL = """
\t\tFunction : _Z6kernelPf
        /*0000*/                   S2R R0, SR_TID.X ;                              /* 0x0000000000007919 */
        /*0010*/                   ISETP.GE.AND P0, PT, R0, UR4, PT ;              /* 0x0000000400007c0c */
        /*0020*/               @P0 EXIT ;                                          /* 0x000000000000094d */
        /*0030*/                   LDG.E.128 R4, desc[UR4][R2.64] ;                /* 0x0000000402047981 */
        /*0040*/                   MUFU.EX2 R8, R4 ;                               /* 0x0000000400087308 */
        /*0050*/                   FSETP.GEU.AND P1, PT, R8, 1, PT ;               /* 0x3f8000000800780b */
        /*0060*/              @!P1 BRA 0x0090 ;                                    /* 0x0000000000209947 */
        /*0070*/                   STG.E desc[UR4][R10.64], R8 ;                   /* 0x000000080a007986 */
        /*0080*/                   EXIT ;                                          /* 0x000000000000794d */
        /*0090*/                   LDG.E.128 R4, desc[UR4][R2.64] ;                /* 0x0000000402047981 */
        /*00a0*/                   MUFU.EX2 R8, R4 ;                               /* 0x0000000400087308 */
        /*00b0*/                   FADD R8, R8, R8 ;                               /* 0x0000000808087221 */
        /*00c0*/                   FADD R8, R8, R8 ;                               /* 0x0000000808087221 */
        /*00d0*/                   FADD R8, R8, R8 ;                               /* 0x0000000808087221 */
        /*00e0*/                   FADD R8, R8, R8 ;                               /* 0x0000000808087221 */
        /*00f0*/                   FADD R8, R8, R8 ;                               /* 0x0000000808087221 */
        /*0100*/                   FADD R8, R8, R8 ;                               /* 0x0000000808087221 */
        /*0110*/                   FADD R8, R8, R8 ;                               /* 0x0000000808087221 */
        /*0120*/                   FADD R8, R8, R8 ;                               /* 0x0000000808087221 */
        /*0130*/                   STG.E desc[UR4][R10.64], R8 ;                   /* 0x000000080a007986 */
        /*0140*/                   EXIT ;                                          /* 0x000000000000794d */
        /*0150*/                   BRA 0x150;                                      /* 0xfffffffc00fc7947 */
"""

LOOP = """
\t\tFunction : _Z4loopPf
        /*0000*/                   S2R R0, SR_TID.X ;                              /* 0x0000000000007919 */
        /*0010*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;                /* 0x0000000402047981 */
        /*0020*/                   MUFU.EX2 R8, R4 ;                               /* 0x0000000400087308 */
        /*0030*/                   IADD3 R0, R0, 1, RZ ;                           /* 0x0000000100007810 */
        /*0040*/               @P0 BRA 0x0010 ;                                    /* 0x0000000000100947 */
        /*0050*/                   STG.E.64 desc[UR4][R10.64], R8 ;                /* 0x000000080a007986 */
        /*0060*/                   EXIT ;                                          /* 0x000000000000794d */
"""


def code(text):
    ((name, instructions),) = issue_slots.disassembled(iter(text.splitlines()))
    return name, instructions


def test_the_usual_way_is_neither_the_empty_one_nor_the_slow_one():
    name, instructions = code(KERNEL)
    assert name == "_Z6kernelPf" and len(instructions) == 22
    assert issue_slots.through(instructions) == issue_slots.Way(slots=9, powers=1, loaded=16, stored=4)
    assert issue_slots.main_loop(instructions) is None


def test_a_turn_of_a_loop():
    _, instructions = code(LOOP)
    assert issue_slots.main_loop(instructions) == issue_slots.Way(slots=4, powers=1, loaded=2, stored=0)
    assert issue_slots.through(instructions) == issue_slots.Way(slots=7, powers=1, loaded=2, stored=8)


def test_names_without_their_namespaces():
    name = "void softpool3d::cuda::forward_overlap<c10::BFloat16, softpool3d::cuda::Along<3, 2, 1> >(float*, int)"
    assert issue_slots.simple(name) == "forward_overlap<BFloat16, 3/2/1>"


def test_the_tools_of_cuda_are_named_where_there_are_none(monkeypatch):
    monkeypatch.setattr(issue_slots.shutil, "which", lambda *_, **__: None)
    with pytest.raises(UsageError, match="cuobjdump is not on PATH"):
        issue_slots.tool("cuobjdump")
