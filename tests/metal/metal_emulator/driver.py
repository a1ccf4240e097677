"""Run mx.fast.metal_kernel sources on a CPU: the same body, header, template, grid and threadgroup.

`metal_kernel(...)` has the signature of `mx.fast.metal_kernel` and returns a callable with the same keyword
arguments, so a test can put it in place of the real one. `.report` of the last run lists what a GPU would have
done silently: out-of-bounds accesses, races between barriers, collectives that not every lane reached, ...
"""
from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent / "runtime"
CACHE = Path(os.environ.get("METAL_EMULATOR_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "metal-emulator"))

ATTRS = {a: "uint" for a in (
    "dispatch_simdgroups_per_threadgroup simdgroup_index_in_threadgroup simdgroups_per_threadgroup "
    "thread_execution_width thread_index_in_simdgroup thread_index_in_threadgroup threads_per_simdgroup "
    "thread_index_in_quadgroup quadgroup_index_in_threadgroup").split()}
ATTRS |= {a: "uint3" for a in (
    "dispatch_threads_per_threadgroup grid_size thread_position_in_grid thread_position_in_threadgroup "
    "threadgroup_position_in_grid threadgroups_per_grid threads_per_grid threads_per_threadgroup").split()}
VALUE = {
    "dispatch_simdgroups_per_threadgroup": "(g.disp_tg_size.x*g.disp_tg_size.y*g.disp_tg_size.z+31)/32",
    "simdgroup_index_in_threadgroup": "L->sg", "simdgroups_per_threadgroup": "g.nsg", "thread_execution_width": "32u",
    "thread_index_in_simdgroup": "L->lane", "thread_index_in_threadgroup": "L->tid", "threads_per_simdgroup": "32u",
    "thread_index_in_quadgroup": "L->lane%4", "quadgroup_index_in_threadgroup": "L->tid/4",
    "dispatch_threads_per_threadgroup": "g.disp_tg_size", "grid_size": "g.grid", "threads_per_grid": "g.grid",
    "thread_position_in_grid": "L->pos_grid", "thread_position_in_threadgroup": "L->pos_tg",
    "threadgroup_position_in_grid": "g.tg_pos", "threadgroups_per_grid": "g.tgs_per_grid",
    "threads_per_threadgroup": "g.tg_size"}
CTYPE = {"float32": "float", "float16": "float16_t", "bfloat16": "bfloat16_t", "int32": "int32_t", "uint32": "uint32_t",
         "int64": "int64_t", "uint64": "uint64_t", "int16": "int16_t", "uint16": "uint16_t", "int8": "int8_t",
         "uint8": "uint8_t", "bool": "bool"}
NPTYPE = {k: np.dtype("uint16" if k == "bfloat16" else k) for k in CTYPE}
KNOWN = "float half bfloat int uint short ushort char uchar long ulong bool".split()


def dtype_name(d) -> str:
    s = str(d).rsplit(".", 1)[-1]
    return s if s in CTYPE else str(np.dtype(d))


def to_numpy(a):
    """(numpy array, dtype name, shape); bfloat16 travels as its bits in uint16."""
    if type(a).__module__.startswith("mlx"):
        import mlx.core as mx
        name = dtype_name(a.dtype)
        b = a.view(mx.uint16) if name == "bfloat16" else a
        return np.array(b), name
    if isinstance(a, (bool, int, float)):
        a = np.array(a, dtype=np.bool_ if isinstance(a, bool) else np.int32 if isinstance(a, int) else np.float32)
    a = np.asarray(a)
    name = str(a.dtype)
    if name == "bfloat16":
        return a.view(np.uint16), "bfloat16"
    return a, name


def _match(s, i, op, cl):
    d = 0
    while i < len(s):
        d += (s[i] == op) - (s[i] == cl)
        i += 1
        if d == 0:
            return i
    raise SyntaxError("unbalanced " + op)


def rewrite_threadgroup(src: str) -> str:
    """`threadgroup T name[..];` declares storage (pointers and references only qualify a type)."""
    out, i, n = [], 0, 0
    for m in re.finditer(r"\bthreadgroup\b(?!_)", src):
        if m.start() < i:
            continue
        j = m.end()
        t = re.compile(r"\s*(?:const\s+)?((?:metal\s*::\s*)?[A-Za-z_]\w*(?:\s*::\s*\w+)*)\s*").match(src, j)
        if not t:
            continue
        k = t.end()
        if k < len(src) and src[k] == "<":
            k = _match(src, k, "<", ">")
        v = re.compile(r"\s*([A-Za-z_]\w*)\s*((?:\[[^;]*?\]\s*)*)([;,=])").match(src, k)
        if not v:
            continue
        end = src.index(";", v.start()) + 1
        names = re.findall(r"([A-Za-z_]\w*)\s*(?:\[[^,;]*\])*\s*(?:,|;)", src[v.start():end])
        out.append(src[i:m.start()])
        out.append("MTL_TGVAR " + src[m.end():end])
        for nm in names:
            out.append(f' MTL_TGREG({nm}, {n})')
            n += 1
        i = end
    out.append(src[i:])
    return "".join(out)


PRELUDE = '''#include "msl_shim.h"
#define MTL_TGVAR static __attribute__((section("mtl_tg"), aligned(256)))
#ifdef MTL_SPACES
#undef MTL_TGVAR
#define MTL_TGVAR static threadgroup
#define MTL_TGREG(v, i)
#else
#define MTL_TGREG(v, i) { static __attribute__((section("mtl_tg"), aligned(256), used)) char _rz##i[256]; mtl_tg_register(#v, (void*)&v, sizeof(v), sizeof(*(::mtl_strip(&v)))); }
#endif
template <typename T> T* mtl_strip(T* p) { return p; }
template <typename T, int N> auto mtl_strip(T (*p)[N]) { return mtl_strip((T*)p); }
MTL_I uint3 mtl_u3(MtlU3 v) { uint3 r; r[0] = v.x; r[1] = v.y; r[2] = v.z; return r; }
MTL_I uint mtl_u3(uint v) { return v; }
'''


class Compiled:
    def __init__(self, so: Path):
        self.so = so
        self.lib = ctypes.CDLL(str(so), mode=os.RTLD_LOCAL | os.RTLD_NOW)


class BufDesc(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("nbytes", ctypes.c_uint64), ("esz", ctypes.c_uint32),
                ("is_out", ctypes.c_uint32), ("offset", ctypes.c_uint64), ("host", ctypes.c_void_p)]


def _cxx():
    for c in (os.environ.get("METAL_EMULATOR_CXX"), "clang++-22", "clang++-19", "clang++-18", "clang++"):
        if c and shutil.which(c):
            return c
    raise RuntimeError("the Metal emulator needs clang++ 18 or newer (apt-get install clang-19)")


def _run(cmd):
    p = subprocess.run(cmd, capture_output=True, text=True)
    if p.returncode:
        raise SyntaxError("the Metal source does not compile:\n" + p.stderr[:4000])
    return p


def runtime_object() -> Path:
    src = (HERE / "mtlemu_rt.cpp").read_bytes() + (HERE / "mtlemu_rt.h").read_bytes()
    o = CACHE / f"rt-{hashlib.sha256(src).hexdigest()[:12]}.o"
    if not o.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        _run([_cxx(), "-std=c++20", "-O2", "-g1", "-fPIC", "-w", "-c", str(HERE / "mtlemu_rt.cpp"), "-o", str(o)])
    return o


class Report(list):
    """Findings of a run: dicts with kind, text, line, other_line, count; `.stats` holds the counters."""
    stats: dict

    def kinds(self):
        return sorted({r["kind"] for r in self})


class Kernel:
    def __init__(self, name, input_names, output_names, source, header="", ensure_row_contiguous=True,
                 atomic_outputs=False, compile_options=None, *, checks=True, strict=True, returns="mlx", flags=(), max_threads=1024):
        self.name, self.ins, self.outs = name, list(input_names), list(output_names)
        self.source, self.header, self.atomic, self.checks, self.strict = source, header, atomic_outputs, checks, strict
        self.returns, self.flags, self.max_threads = returns, list(flags), max_threads
        self.infos = [tuple(f"{n}_{s}" in source for s in ("shape", "strides", "ndim")) for n in self.ins]
        self.attrs = [a for a in ATTRS if re.search(rf"\b{a}\b", source)]
        self._built: dict = {}
        self.report = Report()

    # -- C++ text: the signature mx.fast.metal_kernel writes, then an entry that binds one lane's arguments
    def cpp(self, ins, out_dtypes, template):
        par, call, b = [], [], 0
        for n, (a, dt), (sh, st, nd) in zip(self.ins, ins, self.infos):
            sp, t = ("constant" if a.size < 8 else "device"), CTYPE[dt]
            par.append(f"const {sp} {t}{'&' if a.ndim == 0 else '*'} {n} [[buffer({b})]]")
            call.append(f"{'*' if a.ndim == 0 else ''}(const {t}*)b[{b}]")
            b += 1
            if a.ndim:
                for want, suf, ty in ((sh, "shape", "int"), (st, "strides", "int64_t")):
                    if want:
                        par.append(f"const constant {ty}* {n}_{suf} [[buffer({b})]]")
                        call.append(f"(const {ty}*)b[{b}]")
                        b += 1
                if nd:
                    par.append(f"const constant int& {n}_ndim [[buffer({b})]]")
                    call.append(f"*(const int*)b[{b}]")
                    b += 1
        for n, dt in zip(self.outs, out_dtypes):
            t = f"atomic<{CTYPE[dt]}>" if self.atomic else CTYPE[dt]
            par.append(f"device {t}* {n} [[buffer({b})]]")
            call.append(f"({t}*)b[{b}]")
            b += 1
        for a in self.attrs:
            par.append(f"{ATTRS[a]} {a} [[{a}]]")
            call.append(f"mtl_u3({VALUE[a]})")
        tdef = targ = ""
        if template:
            ty = lambda v: "bool" if isinstance(v, bool) else "int" if isinstance(v, int) else "typename"
            tv = lambda v: str(v).lower() if isinstance(v, bool) else str(v) if isinstance(v, int) else CTYPE[dtype_name(v)]
            tdef = "template <" + ", ".join(f"{ty(v)} {k}" for k, v in template) + ">\n"
            targ = "<" + ", ".join(tv(v) for _, v in template) + ">"
        return (PRELUDE + '#line 1 "kernel_header"\n' + rewrite_threadgroup(self.header) + '\n#line 1 "kernel_sig"\n' + tdef +
                "[[kernel]] void mtl_kernel(" + ",\n".join(par) + ') {\n#line 1 "kernel_body"\n' +
                rewrite_threadgroup(self.source) + '\n}\n#line 1 "kernel_entry"\n#ifdef MTL_SPACES\nauto* mtl_use = &mtl_kernel' + targ + ';\n#else\n' +
                'extern "C" MTL_NOSAN void mtl_entry(void** b) { MtlLane* L = mtl_cur; auto& g = mtl_grp; (void)L; (void)g; mtl_kernel' +
                targ + "(" + ", ".join(call) + "); }\n#endif\n")

    def check_spaces(self, text):
        """Compile once with device/constant/threadgroup as real address spaces: Metal refuses to mix them, plain C++ would not."""
        src = CACHE / (hashlib.sha256(text.encode()).hexdigest()[:16] + "-spaces.cpp")
        src.write_text(text)
        _run([_cxx(), "-std=c++20", "-fsyntax-only", "-Wno-everything", "-DMTL_SPACES", "-ferror-limit=6", f"-I{HERE}", f"-I{HERE}/stubs", *self.flags, str(src)])

    def compile(self, text):
        flags = ["-std=c++20", "-O1", "-gline-tables-only", "-fPIC", "-fno-vectorize", "-fno-slp-vectorize", "-mf16c", "-mavx2", "-mfma",
                 "-ffp-contract=off", "-Xclang", "-ffloat16-excess-precision=none", "-Xclang", "-fbfloat16-excess-precision=none", "-fno-strict-aliasing",
                 "-fno-exceptions", "-Wno-everything", "-Werror=return-type", f"-I{HERE}", f"-I{HERE}/stubs"]
        if os.uname().machine != "x86_64":
            flags = [f for f in flags if not f.startswith("-m")]
        if self.checks:
            flags += ["-fsanitize=thread", "-mllvm", "-tsan-instrument-func-entry-exit=0",
                      "-fsanitize=bounds,shift-exponent,integer-divide-by-zero,alignment"]
        flags += self.flags
        rt = runtime_object()
        h = hashlib.sha256((text + "".join(f.read_text() for f in sorted([HERE / "msl_shim.h", *HERE.glob("stubs/**/*.h")])) + _cxx() + " ".join(flags) + rt.name).encode()).hexdigest()[:16]
        so = CACHE / (re.sub(r"\W", "_", self.name)[:40] + f"-{h}.so")
        t0 = time.perf_counter()
        if not so.exists():
            src = so.with_suffix(".cpp")
            src.write_text(text)
            _run([_cxx(), *flags, "-c", str(src), "-o", str(so) + ".o"])
            _run([_cxx(), "-shared", "-o", str(so) + ".tmp", str(so) + ".o", str(rt), "-lm"])
            os.replace(str(so) + ".tmp", so)
        self.compile_s = time.perf_counter() - t0
        return Compiled(so)

    def __call__(self, *, inputs, output_shapes, output_dtypes, grid, threadgroup, template=None, init_value=None,
                 verbose=False, stream=None, seed=0, profile=False, threadgroups=None, misalign=0, spaces=False):
        size = threadgroup[0] * threadgroup[1] * threadgroup[2]
        if size > self.max_threads:                  # MLX's words; on a GPU the limit depends on the compiled kernel's registers
            raise ValueError(f"Thread group size ({size}) is greater than  the maximum allowed threads per threadgroup ({self.max_threads}).")
        ins = [to_numpy(a) for a in inputs]
        outs = [dtype_name(d) for d in output_dtypes]
        text = self.cpp(ins, outs, template or [])
        if verbose:
            print(text)
        if spaces:
            self.check_spaces(text)
        c = self._built.get(text) or self._built.setdefault(text, self.compile(text))
        keep, bufs = [], []

        def add(name, arr, is_out, off=0):
            arr = np.ascontiguousarray(arr)
            keep.append(arr)
            bufs.append(BufDesc(name.encode(), max(arr.nbytes, 1), arr.itemsize, is_out, off, arr.ctypes.data))
            return arr
        for n, (a, dt), (sh, st, nd) in zip(self.ins, ins, self.infos):
            add(n, a, 0, misalign * a.itemsize)
            if a.ndim:
                if sh:
                    add(n + "_shape", np.array(a.shape, np.int32), 0)
                if st:
                    add(n + "_strides", np.array([s // a.itemsize for s in np.ascontiguousarray(a).strides], np.int64), 0)
                if nd:
                    add(n + "_ndim", np.array([a.ndim], np.int32), 0)
        res = []
        for n, s, dt in zip(self.outs, output_shapes, outs):
            o = np.empty(tuple(s), NPTYPE[dt])
            o.view(np.uint8).fill(0xFF) if init_value is None and o.size else o.fill(0 if init_value is None else init_value)
            res.append(add(n, o, 1))
        lib = c.lib
        arr = (BufDesc * len(bufs))(*bufs)
        g3, t3 = (ctypes.c_uint32 * 3)(*grid), (ctypes.c_uint32 * 3)(*threadgroup)
        first, count = threadgroups or (0, 0xFFFFFFFF)
        t0 = time.perf_counter()
        lib.mtl_run(ctypes.cast(lib.mtl_entry, ctypes.c_void_p), arr, len(bufs), g3, t3, seed, int(self.checks), int(profile),
                    ctypes.c_uint32(first), ctypes.c_uint32(count))
        self.run_s = time.perf_counter() - t0
        self.report = self._collect(lib, c, bufs)
        lib.mtl_cleanup()
        if self.strict and self.report:
            raise EmulationError(self.report)
        return [self._out(o, dt, s) for o, dt, s in zip(res, outs, output_shapes)]

    def _out(self, o, dt, shape):
        if self.returns == "numpy":
            return o
        import mlx.core as mx
        a = mx.array(o.reshape(shape))
        return a.view(mx.bfloat16) if dt == "bfloat16" else a

    def _collect(self, lib, c, bufs):
        r = Report()
        kind, text = ctypes.create_string_buffer(64), ctypes.create_string_buffer(1024)
        pcs, lines, cnt = (ctypes.c_uint64 * 2)(), (ctypes.c_uint32 * 2)(), ctypes.c_uint64()
        i = 0
        while lib.mtl_get_report(i, kind, text, pcs, lines, ctypes.byref(cnt)):
            r.append(dict(kind=kind.value.decode(), text=text.value.decode(), line=lines[0] or None, other_line=lines[1] or None,
                          count=cnt.value, _pc=(pcs[0], pcs[1])))
            i += 1
        want = sorted({p for x in r for p in x["_pc"] if p})
        where = self._symbolize(c, want)
        for x in r:
            a, b = x.pop("_pc")
            x["line"] = x["line"] or where.get(a)
            x["other_line"] = x["other_line"] or where.get(b)
        merged = {}                                  # unrolled copies of one source line are one finding
        for x in r:
            m = merged.setdefault((x["kind"], x["line"], x["other_line"]), x)
            if m is not x:
                m["count"] += x["count"]
        r[:] = merged.values()
        n = (ctypes.c_uint64 * 16)()
        lib.mtl_get_counts(n)
        st = dict(mma=n[0], simd_ops=n[1], threadgroup_barriers=n[2], simdgroup_barriers=n[3], threadgroup_read=n[4],
                  threadgroup_written=n[5], atomics=n[6], threadgroup_bytes=n[7], threadgroups=n[8], compile_s=self.compile_s, run_s=self.run_s)
        o = (ctypes.c_uint64 * 3)()
        for i, b in enumerate(bufs):
            lib.mtl_get_region(i, o)
            st[b.name.decode()] = dict(read=o[0], written=o[1], unique=o[2], size=b.nbytes)
        q, rows, i = (ctypes.c_uint64 * 8)(), [], 0
        while lib.mtl_get_prof(i, q):
            rows.append(list(q))
            i += 1
        if rows:
            where = self._symbolize(c, sorted({x[0] for x in rows}))
            st["memory_ops"] = [dict(line=where.get(x[0]), buffer=bufs[x[1]].name.decode(), write=bool(x[2]), ops=x[3],
                                     bytes_per_op=x[5] / x[3], lines128_per_op=x[6] / x[3], sectors32_per_op=x[7] / x[3]) for x in rows]
        r.stats = st
        return r

    def _symbolize(self, c, pcs):
        if not pcs:
            return {}
        base = 0
        for l in open("/proc/self/maps"):
            if str(c.so) in l:
                base = int(l.split("-")[0], 16) - int(l.split()[2], 16)
                break
        tool = next((t for t in ("llvm-symbolizer-22", "llvm-symbolizer-19", "llvm-symbolizer", "addr2line") if shutil.which(t)), None)
        if not tool:
            return {}
        out = {}
        args = [tool, "-i", "-e", str(c.so)] if tool == "addr2line" else [tool, "--inlines", "--output-style=GNU", "-e", str(c.so)]
        for p in pcs:
            t = subprocess.run([*args, hex(p - base - 1)], capture_output=True, text=True).stdout
            hit = re.findall(r"(kernel_body|kernel_header):(\d+)", t)
            if hit:
                body = [h for h in hit if h[0] == "kernel_body"]
                out[p] = int(body[-1][1]) if body else f"header:{hit[0][1]}"
        return out


class EmulationError(RuntimeError):
    def __init__(self, report):
        self.report = report
        super().__init__("\n".join(f"{r['kind']} (line {r['line']}{'' if r['other_line'] is None else ' and ' + str(r['other_line'])}, "
                                   f"{r['count']} times): {r['text']}" for r in report))


def metal_kernel(name, input_names, output_names, source, header="", ensure_row_contiguous=True, atomic_outputs=False,
                 compile_options=None, **kw):
    return Kernel(name, input_names, output_names, source, header, ensure_row_contiguous, atomic_outputs, compile_options, **kw)
