"""Side by side: ours and its peers in turns, each in a process of its own, with their peak memory, and the floors.

A case's sides are built, called to warm up (what compiles is compiled), and then called in turns, round after round,
so that whatever else the machine does hits all alike; the median and the quartiles of a side's rounds are kept. A side
sleeps while another is called, and a virtual machine then takes back the memory that it has freed: the contrastive
step's first call after a pause takes 2.7 s, those that follow it 1.5. What is a step of a loop is therefore called
several times in a turn, and the first call is not counted. All sides have the same number of threads. A peer that takes
over 1.3 times as long as the best peer in the first round sits the others out, unless a target names it. The machine's
own rates are measured just before and just after the rounds. Peak memory is the largest resident memory of a side's process during one more call.
"""

import contextlib
import dataclasses
import datetime
import gc
import json
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
MARKS = ("<!-- results: begin, written by benchmarks/harness.py -->", "<!-- results: end -->")
GIB = 1 << 30
TARGETS = {  # case: how many times the time of the best peer whose name begins so is asked for
    "rlso": (4, ""), "profiles-write": (2, ""), "profiles-prefill-float32": (1.4, "float32"),
    "training-float32": (1.4, "float32"), "embedding-contrastive": (1.2, "sentence-transformers"),
    "embedding-catalogue": (1.2, "sentence-transformers"), "ranking-12000": (1.5, ""), "ranking-100000": (1.5, ""),
    "ranking-1000000": (1.5, ""),
}  # fmt: skip
CAST = "autocast"  # in the name of a peer that is not as it comes
SLOWER = 1.3


@dataclasses.dataclass
class Case:
    """What is compared.

    name: for the command line and the table. dtype: of our matrix products ("auto": as this machine has it), whose rate
    is the floor's. ours, peers: functions that build a side and return what is timed; that returns None, or an array to
    compare with the other side's, or {"parts": seconds by part, "seconds": in all} where it takes the time itself.
    needs(options): by part (or one, "whole") its stages as floors.Need. alike: the relative difference allowed between
    what ours and a peer return. warm_up: calls before the first round (a side that warms itself up needs none). repeats:
    calls one after another in each turn; of several the first is not counted and the mean of the others is.
    """

    name: str
    dtype: str
    ours: Callable
    peers: dict[str, Callable]
    needs: Callable
    rounds: int = 5
    warm_up: int = 1
    repeats: int = 1
    alike: float | None = None

    def sides(self) -> dict[str, Callable]:
        """All sides by name, ours first."""
        return {"ours": self.ours} | self.peers


# ---- the machine


def _fastest(run: Callable, times: int = 6) -> float:
    """Seconds of the fastest of several calls, after one to warm up."""
    run()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def rates(device: str = "cpu") -> dict[str, float]:
    """Operations a second of 2048³ products by library and type, and bytes a second of a copy (read and written).

    Of 8192³ on an accelerator. float32 is that, and not what some accelerators put in its place.
    """
    import jax
    import jax.numpy as jnp

    size, found = 2048 if device == "cpu" else 8192, {}

    @jax.jit
    def multiply(a, b):
        precision = "highest" if a.dtype == jnp.float32 else None
        return jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32)

    source = np.ones(1 << 26, np.float32)
    target = np.empty_like(source)
    copies = [lambda: np.copyto(target, source)]
    for dtype in ("float32", "bfloat16"):
        a = jax.random.normal(jax.random.key(0), (size, size), dtype)
        found[f"jax {dtype}"] = 2 * size**3 / _fastest(lambda a=a: multiply(a, a).block_until_ready())
    try:
        import torch
    except ModuleNotFoundError:
        torch = None
    if torch:
        from benchmarks import torch_device

        for dtype in ("float32", "bfloat16"):
            a = torch.randn((size, size), dtype=getattr(torch, dtype), device=device)

            def square(a=a):
                torch.matmul(a, a)
                torch_device.wait()

            found[f"torch {dtype}"] = 2 * size**3 / _fastest(square)
        copies.append(lambda: torch.from_numpy(target).copy_(torch.from_numpy(source)))
    if device != "cpu":
        there = jax.device_put(np.tile(source, 4))
        source, copies = there, [lambda: jax.lax.neg(there).block_until_ready()]
    found["copy"] = max(2 * source.nbytes / _fastest(copy, 3) for copy in copies)
    return found


def machine(options) -> dict:
    """What the figures were taken on."""
    import importlib.metadata as metadata

    versions = {}
    for package in ("jax", "torch", "transformers", "sentence-transformers", "faiss-cpu", "pytrec_eval-terrier"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    if options.device != "cpu":
        import jax

        model = jax.devices()[0].device_kind
    return {
        "processor": model,
        "device": options.device,
        "threads": options.threads,
        "random weights": options.random,
        "versions": versions,
    }


# ---- one case


def _call(run: Callable, repeats: int = 1) -> tuple[float, dict, object]:
    """Seconds, seconds by part, and what a side returned."""
    if repeats > 1:
        run()
    counted = max(1, repeats - 1)
    started = time.perf_counter()
    for _ in range(counted):
        out = run()
    seconds = (time.perf_counter() - started) / counted
    if isinstance(out, dict):
        return out.get("seconds", seconds), out["parts"], out.get("output")
    return seconds, {}, out


def _difference(ours, theirs) -> float | None:
    """How far apart two sides' outputs are, relative to the peer's size."""
    if ours is None or theirs is None:
        return None
    ours, theirs = (np.asarray(a, np.float64).ravel() for a in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30))


class Side:
    """One side, built in a process of its own."""

    def __init__(self, make: Callable, device: str = "cpu", repeats: int = 1):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        spawn.Process(target=_serve, args=(theirs, make, device, repeats), daemon=True).start()
        theirs.close()
        self.note = self._answer()

    def _answer(self):
        try:
            found = self.pipe.recv()
        except EOFError:
            raise RuntimeError("its process has ended") from None
        if isinstance(found, Exception):
            raise found
        return found

    def call(self) -> tuple[float, dict, object]:
        """Seconds, seconds by part, and what it returned."""
        self.pipe.send("call")
        return self._answer()

    def peak(self) -> int | None:
        """Peak memory of one more call, in bytes; None where that can't be measured."""
        self.pipe.send("peak")
        return self._answer()

    def close(self) -> None:
        """Its process ends."""
        self.pipe.close()


def _serve(pipe, make: Callable, device: str, repeats: int) -> None:
    """A side's process: builds it, and does what it is asked until nobody is there to ask."""

    def peak():
        if device != "cpu":
            return peak_on_device(run)
        if not Path("/proc/self/status").exists():
            return None
        forget()
        _call(run)
        return resident()

    def tell(work):
        try:
            gc.collect()
            pipe.send(work())
        except ModuleNotFoundError as error:
            pipe.send(error)
        except Exception as error:  # of any library, and not all of them can be sent
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))

    def built():
        nonlocal run
        run = make()
        return getattr(run, "note", None)

    run = None
    tell(built)
    with contextlib.suppress(EOFError):
        while run and (asked := pipe.recv()):
            tell(peak if asked == "peak" else lambda: _call(run, repeats))


def build(case: Case, names, device: str) -> tuple[dict[str, Side], list[str]]:
    """The sides that can be had here, and a line for each that can't."""
    built, left_out = {}, []
    for name in names:
        try:
            built[name] = Side(case.sides()[name], device, case.repeats)
        except ModuleNotFoundError as error:
            if name == "ours":
                raise
            left_out.append(f"{name}: {error.name} is not installed")
            print(f"  {left_out[-1]}; this peer is left out (pip install -e '.[test,bench]')", flush=True)
    return built, left_out


def compare(case: Case, options) -> dict:
    """Builds, warms up and times the sides in turns; returns what results.json holds of the case."""
    print(f"{case.name}:", flush=True)
    built, left_out = build(case, case.sides(), options.device)
    outputs = {}
    for name in list(built):
        try:
            made = [built[name].call()[2] for _ in range(case.warm_up)]
            outputs[name] = made[0] if made else None  # the first calls' are of equal states
        except RuntimeError as error:  # a setting of a peer's that does not run here
            if name == "ours":
                raise
            built.pop(name).close()
            left_out.append(f"{name}: {' '.join(str(error).split())[:200]}")
            print(f"  {left_out[-1]}; this peer is left out", flush=True)
    apart = {name: _difference(outputs.get("ours"), outputs.get(name)) for name in built if name != "ours"}
    for name, far in apart.items():
        if case.alike is not None and far is not None and not far <= case.alike:
            print(f"  WARNING: ours and {name} differ by {far:.2g}, more than {case.alike:g}", flush=True)
    before, taken, parts = rates(options.device), {name: [] for name in built}, {name: [] for name in built}
    alive = list(built)
    for number in range(options.rounds or case.rounds):
        for name in alive:
            seconds, of_parts, _ = built[name].call()
            taken[name].append(seconds)
            parts[name].append(of_parts)
            print(f"  round {number + 1}, {name}: {seconds:.4g} s", flush=True)
        if number == 0 and len(alive) > 2:
            best = min(taken[name][0] for name in alive if name != "ours")
            start = TARGETS.get(case.name, (0, ""))[1]  # the best of those that a target names stays too
            asked = min(
                (name for name in alive if start and name.startswith(start)), key=lambda n: taken[n][0], default=""
            )
            alive = [name for name in alive if name in ("ours", asked) or taken[name][0] <= SLOWER * best]
    after = rates(options.device)
    found = {name: max(before[name], after[name]) for name in before}
    sides = {name: _summary(taken[name], parts[name]) for name in built}
    for name, side in sides.items():
        side |= {"note": built[name].note} if built[name].note else {}
        side |= {"difference": apart[name]} if apart.get(name) is not None else {}
        if name in alive:
            side["peak"] = built[name].peak()
        built[name].close()
    return {
        "date": datetime.date.today().isoformat(), "machine": machine(options), "rates": found, "sides": sides,
        "left out": left_out, "floor": floor(case, found, options),
    }  # fmt: skip


def _summary(seconds: list[float], parts: list[dict]) -> dict:
    low, median, high = (float(q) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
    names = parts[0].keys()
    medians = {name: float(np.median([of[name] for of in parts])) for name in names}
    return {"median": median, "low": low, "high": high, "rounds": len(seconds), "parts": medians}


def floor(case: Case, found: dict, options) -> dict:
    """Seconds that no program on this machine goes below, by part, with the operations and bytes they come from."""
    from lpt_jax import devices

    dtype = devices.product_type(case.dtype)
    rate, parts = max(value for name, value in found.items() if name.endswith(f" {dtype}")), {}
    for name, stages in case.needs(options).items():
        parts[name] = {
            "seconds": sum(max(stage.operations / rate, stage.bytes / found["copy"]) for stage in stages),
            "operations": sum(stage.operations for stage in stages), "bytes": sum(stage.bytes for stage in stages),
            "why": list(dict.fromkeys(stage.why for stage in stages)),
        }  # fmt: skip
    return {"dtype": dtype, "seconds": sum(part["seconds"] for part in parts.values()), "parts": parts}


# ---- memory


def resident() -> int:
    """The process's largest resident memory since forget(), in bytes.

    From /proc, as getrusage's counts the memory of the process that started this one too.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


def peak_on_device(run: Callable) -> int | None:
    """Peak memory of one call on the accelerator; of jax since the process began, as it can't be told to forget."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"] if jax else None


def forget() -> None:
    """The high-water mark falls to what is resident now: what building a side took for a while does not count."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def alone(case: Case, name: str, options) -> dict:
    """One side by itself: its times and its peak memory in bytes."""
    built, left_out = build(case, [name], options.device)
    if left_out:
        return {"left out": left_out}
    side = built[name]
    for _ in range(case.warm_up):
        side.call()
    calls = [side.call() for _ in range(options.rounds or case.rounds)]
    return _summary([seconds for seconds, _, _ in calls], [parts for _, parts, _ in calls]) | {"peak": side.peak()}


# ---- results


def keep(found: dict) -> None:
    """Puts new results among those of benchmarks/results.json, and into the README.

    By "cases", "accelerator" (the cases on one), "startup", "where", "growth", "preparation", "catalogue" and "page".
    """
    path, readme = HERE / "results.json", HERE / "README.md"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, part in found.items():
        results[name] = results.get(name, {}) | part
    _write(path, json.dumps(results, indent=1) + "\n")
    text = readme.read_text(encoding="utf-8")
    head, _, rest = text.partition(MARKS[0])
    _, _, tail = rest.partition(MARKS[1])
    _write(readme, f"{head}{MARKS[0]}\n\n{table(results)}\n\n{MARKS[1]}{tail}")


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def number(value: float | None) -> str:
    """Three digits.

    >>> number(0.01234), number(12.34), number(1234.5), number(None)
    ('0.0123', '12.3', '1234', '–')
    """
    return "–" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def best_peer(sides: dict) -> str | None:
    """The peer with the smallest median."""
    peers = {name: side["median"] for name, side in sides.items() if name != "ours"}
    return min(peers, key=peers.get) if peers else None


def table(results: dict) -> str:
    """The results as Markdown tables: cases, their parts, start-up, growth."""
    lines = []
    if cases := results.get("cases"):
        lines += [
            "| case | ours, s (quartiles) | peer | peer, s | peer / ours | floor, s | reached | peak GiB: ours, peer |",
            "|:--|--:|:--|--:|--:|--:|--:|--:|",
        ]
        for name, case in cases.items():
            lines += _rows(name, case)
        spans = {}
        for case in cases.values():
            for rate, value in case["rates"].items():
                low, high = spans.get(rate, (value, value))
                spans[rate] = min(low, value), max(high, value)
        about = next(reversed(cases.values()))["machine"]
        said = [
            f"{rate} {low / 1e9:.0f}–{high / 1e9:.0f} {'GB/s' if rate == 'copy' else 'GFLOP/s'}"
            for rate, (low, high) in spans.items()
        ]
        versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
        lines += [
            "",
            f"On {about['processor']}, {about['threads']} threads{', random weights' * about['random weights']}; "
            f"{versions}. The machine's own rates beside the cases: {', '.join(said)}.",
        ]
        asked_here = {name: of for name, of in TARGETS.items() if name in cases and about.get("device", "cpu") == "cpu"}
        if asked_here:
            lines += ["", "| case | peer | asked | measured | floor reached |", "|:--|:--|--:|--:|--:|"]
        for name, (asked, start) in asked_here.items():
            case = cases[name]
            sides = {peer: of for peer, of in case["sides"].items()
                     if peer.startswith(start or peer) and not (start and CAST in peer) and peer != "ours"}  # fmt: skip
            ours, peer = case["sides"]["ours"]["median"], min(sides, key=lambda peer: sides[peer]["median"])
            ratio, floor = sides[peer]["median"] / ours, case["floor"]["seconds"] / ours
            missed = " (missed)" * (ratio < asked)
            lines.append(f"| {name} | {peer} | {asked} × | {ratio:.2f} ×{missed} | {floor:.0%} |")
    if startup := results.get("startup"):
        lines += ["", "| start-up | cold cache, s | warm cache, s |", "|:--|--:|--:|"]
        for mark, cold in startup["seconds"]["cold"].items():
            lines.append(f"| {mark} | {number(cold)} | {number(startup['seconds']['warm'].get(mark))} |")
        made = startup["compilations"]
        lines += [
            "",
            f"A whole tiny run compiles {made['in all']} programs, {made['more with more steps']} more with three "
            f"times the steps; the most: {', '.join(f'{name} {count}' for name, count in made['most'].items())}.",
        ]
    if growth := results.get("growth"):
        lines += ["", "Growth: the exponent of the last step, 1 being linear (time, memory).", ""]
        parts = list(dict.fromkeys(part for axis in growth.values() for part in axis))
        lines += [f"| over | {' | '.join(parts)} |", "|:--|" + "--:|" * len(parts)]
        for axis, of_parts in growth.items():
            cells = [
                f"{of_parts[part]['exponent']['seconds']:.2f}, {of_parts[part]['exponent']['bytes']:.2f}"
                if part in of_parts else "–" for part in parts
            ]  # fmt: skip
            lines.append(f"| {axis} | {' | '.join(cells)} |")
    if there := results.get("accelerator"):
        lines += ["", "On an accelerator (`--device=cuda`; 64 users an update, 256 profiles written at once, 12,000 texts "
                  "embedded; peak memory is the device's):", "", table({"cases": there})]  # fmt: skip
    if where := results.get("where"):
        from benchmarks import where_time_goes

        lines += where_time_goes.table(where)
    if large := results.get("preparation"):
        rows, size = large["parse"]["rows"]["Movies_and_TV.jsonl"], large["read"]["bytes"] / 1e9
        lines += ["", f"Preparing {rows:,} reviews ({size:.1f} GB with the metadata):", ""]
        lines += ["| step | s | peak GiB |", "|:--|--:|--:|"]
        names = {"read": "the bytes alone", "parse": "Arrow's parser alone", "prepare": "sessions.prepare, all of it"}
        lines += [
            f"| {named} | {number(large[step]['seconds'])} | {number(large[step]['peak_gib'])} |"
            for step, named in names.items()
        ]
    if large := results.get("catalogue"):
        lines += [
            "",
            f"A catalogue of {large['items']:,} items in {large['shards']} shards, killed after {large['shards_kept']} and gone on "
            f"with: the others took {number(large['seconds'])} s, ranking {large['profiles']} profiles {number(large['ranking'])} s; "
            f"{number(large['before_gib'])} GiB with models and data ready, {number(large['peak_gib'])} at the peak.",
        ]
    if page := results.get("page"):
        lines += [
            "",
            f"The page, {page['items']:,} items, medians (90 %) of {page['edits']}: from the click to the new list "
            "{:.3f} s ({:.3f}), from an edit {:.3f} s ({:.3f}).".format(*page["click"], *page["edit"]),
        ]
    return "\n".join(lines)


def _rows(name: str, case: dict) -> list[str]:
    """A case's lines: one for each peer, the best in bold, then its parts against the best."""
    sides, whole = case["sides"], case["floor"]
    ours, best = sides["ours"], best_peer(sides)
    quartiles = f"{number(ours['median'])} ({number(ours['low'])}–{number(ours['high'])})"
    reached = f"{whole['seconds'] / ours['median']:.0%}"
    memory = [None if side.get("peak") is None else side["peak"] / GIB for side in sides.values()]
    memory = dict(zip(sides, map(number, memory), strict=True))
    lines = []
    for peer in sorted((s for s in sides if s != "ours"), key=lambda s: sides[s]["median"]) or [None]:
        first = not lines
        cells = [name, quartiles] if first else ["", ""]
        if peer:
            side = sides[peer]
            label = f"{peer} ({side['note']})" if side.get("note") else peer
            label += "" if side["rounds"] > 1 else ", one round"
            ratio = f"{side['median'] / ours['median']:.2f} ×"
            bold = "**" if peer == best else ""
            cells += [label, number(side["median"]), f"{bold}{ratio}{bold}"]
        else:
            cells += ["–", "–", "–"]
        cells += [number(whole["seconds"]), reached] if first else ["", ""]
        cells.append(f"{memory['ours']}, {memory[peer] if peer else '–'}")
        lines.append(f"| {' | '.join(cells)} |")
    for part, seconds in ours["parts"].items():
        theirs = sides[best]["parts"].get(part) if best else None
        least = whole["parts"].get(part, {}).get("seconds")
        cells = [f"· {part}", number(seconds), best or "–", number(theirs)]
        cells.append(f"{theirs / seconds:.2f} ×" if theirs else "–")
        cells += [number(least), f"{least / seconds:.0%}" if least else "–", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
