"""Whether a training on this GPU is right and fast: all that a CPU cannot show, in one run of a few minutes.

python benchmarks/gpu.py [--Cuda=False --items=graphs,steps ...]

Prints `ok`, `NOT OK` or `-` (a figure without a bound) for each line, and writes them to gpu.json. It needs no network
and no packages beyond requirements.txt. On a CPU the same runs with small sizes, as far as a CPU has it.
"""

import copy
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.runtime.startup  # noqa: F401 # isort: skip
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step import OperatorCounter, fixed_batch
from nets import build_criterion, build_model
from utils.config.cli import run_script
from utils.config.constants import read_constants
from utils.io.files import PROJECT
from utils.io.logger import logger
from utils.runtime import device as machine
from utils.runtime.distributed import DistInfo, MixedPrecision
from utils.training.compile import compile_network
from utils.training.engine import OptimWrapper
from utils.training.graphs import GraphedOptimWrapper
from utils.training.optim import ModelEMA, build_optimizer, parameter_groups, set_rate

# ----------------------------------------------------------------------------------------------------------------------
#   Cuda       False runs on the CPU, with small sizes.
#   items      Names of functions below, with commas between them; '' runs all, the important ones first.
#   seconds    No item is begun after so many.
#   save_dir   Folder of gpu.json, and of the trainings that are made; it is not emptied.
# ----------------------------------------------------------------------------------------------------------------------
Cuda = True
items = ""
seconds = 480
save_dir = "logs/gpu"

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SMALL = (("yolox_nano", 2, 64), ("yolov4_tiny", 2, 64))
_LARGE = (("yolox_nano", 16, 416), ("yolox_nano", 64, 416), ("yolox_s", 64, 640), ("yolov4", 32, 416))
_ITEMS = {}


class Bench:
    """device: torch.device. folder: for files. large: whether sizes suit a GPU. rows: (item, what, ok, text)."""

    def __init__(self, settings):
        self.device, _ = machine.choose_device(settings.Cuda)
        self.folder, self.rows, self.large = Path(settings.save_dir), [], self.device.type == "cuda"
        self.cases = _LARGE if self.large else _SMALL
        self.precisions = {name: dtype for name, dtype in _PRECISIONS.items() if self.large or name != "float16"}
        self.item = ""

    def report(self, what, text, ok=None):
        """Log a line and keep it. ok: None for a figure without a bound."""
        self.rows.append((self.item, what, ok, text))
        logger.info(f"{ {None: '-', True: 'ok', False: 'NOT OK'}[ok]:6s}  {self.item:10s} {what:44s} {text}")

    def synchronize(self):
        if self.large:
            torch.cuda.synchronize()

    def command(self, script, *arguments):
        """The command of a script of this project, on this device."""
        return [sys.executable, script, *arguments, *([] if self.large else ["--Cuda=False"])]


def item(function):
    _ITEMS[function.__name__] = function
    return function


def main(settings):
    """Run the items and write gpu.json. Returns nothing; exit status 1 where a line is not ok."""
    bench, start = Bench(settings), time.perf_counter()
    # A shell may start this with signals ignored, and trainings started here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    bench.folder.mkdir(parents=True, exist_ok=True)
    for name in settings.items.split(",") if settings.items else _ITEMS:
        bench.item = name
        if time.perf_counter() - start > settings.seconds:
            bench.report("left out", f"{settings.seconds} s are over")
            continue
        began = time.perf_counter()
        try:
            _ITEMS[name](bench)
        except Exception as error:
            bench.report("failed", f"{type(error).__name__}: {error}"[:2000], ok=False)
        bench.report("seconds", f"{time.perf_counter() - began:.1f}")
        rows = [dict(zip(("item", "what", "ok", "text"), row, strict=True)) for row in bench.rows]
        (bench.folder / "gpu.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        if bench.large:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    bad = [row for row in bench.rows if row[2] is False]
    logger.info(f"\n{len(bad)} lines are not ok; all of them are in {bench.folder / 'gpu.json'}")
    sys.exit(1 if bad else 0)


def make(bench, case, dtype, wrapper=OptimWrapper, optimizer_type="sgd", size=None):
    """An OptimWrapper with a network in train mode, the network as it is called, and a fixed batch.

    case: (model_name, batch size, side of the input).
    """
    name, batch_size, side = case
    torch.manual_seed(0)
    model = build_model(name, 80).to(bench.device, memory_format=torch.channels_last)
    model.freeze(())
    model.train()
    precision = machine.Precision(dtype, dtype == torch.float16, "")
    runtime = machine.RuntimeContext(bench.device, DistInfo(), precision)
    optimizer = build_optimizer(optimizer_type, parameter_groups(model, 5e-4, 0), 0.9)
    optim = wrapper(model, build_criterion(model), optimizer, ModelEMA(model, 1000), runtime)
    for group in optimizer.param_groups:
        set_rate(group, 1e-4)
    optim.norm_backup.save()
    settings = SimpleNamespace(input_shape=[side, side], boxes=20 if side > 200 else 6, num_classes=80)
    return optim, MixedPrecision(model, runtime), fixed_batch(batch_size, settings, bench.device)


def milliseconds(bench, function, repeats=10, warm_up=5):
    """Time of a call: (in all, of the host alone)."""
    repeats, warm_up = (repeats, warm_up) if bench.large else (1, 4)
    for _ in range(warm_up):
        function()
    bench.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    host = time.perf_counter() - start
    bench.synchronize()
    return (time.perf_counter() - start) / repeats * 1e3, host / repeats * 1e3


@item
def versions(bench):
    """What runs where."""
    for name, text in machine.describe(bench.device):
        bench.report(name, text)


@item
def graphs(bench):
    """The step as a CUDA graph gives what the step gives otherwise. On the CPU the same steps run twice."""
    for case in (bench.cases[0], ("yolov4_tiny", *bench.cases[0][1:])):
        for optimizer_type in ("sgd", "adamw"):
            states, losses = [], []
            for wrapper in (OptimWrapper, GraphedOptimWrapper if bench.large else OptimWrapper):
                optim, network, batch = make(bench, case, torch.bfloat16, wrapper, optimizer_type)
                found = [optim.train_step(network, *batch)[1]["loss"].clone() for _ in range(8)]
                optim.flush()
                losses.append(torch.stack(found).float().cpu())
                states.append(torch.cat([value.float().flatten() for value in optim.ema.model.state_dict().values()]))
            failure = getattr(optim, "failure", "")
            moved = (states[0] - states[1]).norm().item() / states[0].norm().item()
            differs = ((losses[0] - losses[1]).abs() / losses[0]).max().item()
            text = f"losses {differs:.1e}, average {moved:.1e}; {losses[0][0]:.3f} -> {losses[1][-1]:.3f} {failure}"
            is_ok = not failure and differs < 2e-2 and moved < 1e-3
            bench.report(f"{case[0]} {optimizer_type}", text, is_ok)


@item
def steps(bench):
    """Time of a training step, eager and as a graph, and its share of what the card can do."""
    peak, bandwidth = card_limits(bench)
    for case in bench.cases:
        name = "{} b{}@{}".format(*case)
        for kind, wrapper in (("eager", OptimWrapper), ("graphs", GraphedOptimWrapper)):
            if kind == "graphs" and not bench.large:
                continue
            optim, network, batch = make(bench, case, torch.bfloat16, wrapper)
            total, host = milliseconds(bench, lambda o=optim, n=network, b=batch: o.train_step(n, *b))
            memory = torch.cuda.max_memory_allocated() / 2**30 if bench.large else 0
            share = step_flops(network, batch) / (total / 1e3) / peak
            text = f"{total:.1f} ms (host {host:.1f}), {case[1] / total * 1e3:.0f} images/s, {memory:.1f} GiB, "
            bench.report(f"{name} {kind}", text + f"{share:.1%} of the measured bfloat16 peak {optim_failure(optim)}")
            del optim, network, batch
            if bench.large:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    bench.report("card", f"{peak / 1e12:.0f} TFLOP/s bfloat16, {bandwidth / 1e9:.0f} GB/s, measured")


def optim_failure(optim):
    return getattr(optim, "failure", "")


def card_limits(bench):
    """(bfloat16 FLOP/s of a large matrix product, bytes/s of a copy), as measured."""
    side, count = (8192, 2**28) if bench.large else (256, 2**20)
    a = torch.ones(side, side, dtype=torch.bfloat16, device=bench.device)
    values = torch.ones(count, device=bench.device)
    target = torch.empty_like(values)
    product, _ = milliseconds(bench, lambda: a @ a)
    copied, _ = milliseconds(bench, lambda: target.copy_(values))
    return 2 * side**3 / (product / 1e3), 8 * count / (copied / 1e3)


def step_flops(network, batch):
    """Operations of a forward and backward pass, counted on one image."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.network.eval()
        network(batch[0][:1])
    network.network.train()
    return 3 * counter.get_total_flops() * len(batch[0])


@item
def waits(bench):
    """A step never waits for the device. On the CPU: no operator that would make it wait."""
    for case in (("yolox_nano", 4, 128 if bench.large else 64), ("yolov4_tiny", 4, 128 if bench.large else 64)):
        for name, dtype in bench.precisions.items():
            optim, network, batch = make(bench, case, dtype)
            if not bench.large:
                with OperatorCounter() as counter:
                    optim.backward(optim.compute_loss(network, *batch))
                found = {key: counter.counts[key] for key in ("_local_scalar_dense", "nonzero") if counter.counts[key]}
                bench.report(f"{case[0]} {name}", f"{counter.total} operators, waits: {found or 'none'}", not found)
                continue
            for _ in range(3):
                optim.train_step(network, *batch)
            bench.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(20):
                    optim.train_step(network, *batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            bench.report(f"{case[0]} {name}", "20 steps without a wait", True)


@item
def not_finite(bench):
    """Three batches whose loss is NaN leave weights, average and statistics as they were."""
    for name, dtype in bench.precisions.items():
        for optimizer_type in ("sgd", "adamw"):
            optim, network, batch = make(bench, ("yolox_nano", 4, 64), dtype, optimizer_type=optimizer_type)
            optim.train_step(network, *batch)
            optim.flush()
            before = copy.deepcopy([optim.model.state_dict(), optim.ema.model.state_dict()])
            broken = batch[1].clone()
            broken[:, 0, :4] = torch.nan
            skipped = sum(bool(optim.train_step(network, batch[0], broken)[0]) for _ in range(3)) + optim.flush()
            after = [optim.model.state_dict(), optim.ema.model.state_dict()]
            same = all(torch.equal(old[key], new[key]) for old, new in zip(before, after, strict=True) for key in old)
            bench.report(
                f"{name} {optimizer_type}", f"{skipped} of 3 skipped, all as before: {same}", same and skipped == 3
            )


@item
def overflow(bench):
    """A gradient beyond float16 is left out, and the scale halved."""
    if not bench.large:
        return bench.report("float16", "needs a GPU")
    optim, network, batch = make(bench, ("yolox_nano", 4, 128), torch.float16)
    optim.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    weights = copy.deepcopy(optim.model.state_dict())
    optim.train_step(network, *batch)
    optim.flush()
    same = all(torch.equal(weights[key], value) for key, value in optim.model.state_dict().items())
    scale = optim.scaler.get_scale()
    return bench.report("float16", f"weights as before: {same}, scale 2^40 -> {scale:.3g}", same and scale == 2.0**39)


@item
def against_cpu(bench):
    """Loss and gradient of a batch, on the device in each precision against float32 on the CPU.

    BatchNorm has fixed statistics, and the gradient is that of the mean square of the raw maps: with an untrained
    network the last digits decide which cell learns which box, and what the statistics of a batch do.
    """
    for name in ("yolox_nano", "yolov4_tiny"):
        torch.manual_seed(0)
        model = build_model(name, 3)
        model.freeze(())
        settings = SimpleNamespace(input_shape=[160, 160], boxes=8, num_classes=3)
        batch = fixed_batch(4, settings, torch.device("cpu"))
        expected = loss_and_gradient(model.eval(), batch, torch.float32, torch.device("cpu"))
        for precision, dtype in bench.precisions.items():
            found = loss_and_gradient(copy.deepcopy(model), batch, dtype, bench.device)
            loss = abs(found[0] / expected[0] - 1)
            gradient = ((found[1] - expected[1]).norm() / expected[1].norm()).item()
            bound = 1e-4 if dtype == torch.float32 else 2e-2
            bench.report(
                f"{name} {precision}", f"loss {loss:.1e}, gradient {gradient:.1e}", max(loss, gradient) < bound
            )


def loss_and_gradient(model, batch, dtype, device):
    model = model.to(device, memory_format=torch.channels_last)
    model.zero_grad()
    images, targets = (values.to(device) for values in batch)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        raw = model(images)
    loss = build_criterion(model)(raw, targets)["loss"]
    sum(level.float().square().mean() for level in raw).backward()
    return loss.item(), torch.cat([parameter.grad.flatten().cpu() for parameter in model.parameters()])


@item
def training(bench):
    """The sample is trained, stopped by SIGINT, resumed, used; the preflight's GiB against the real peak."""
    folder = bench.folder / "training"
    command = bench.command("train.py", f"--save_dir={folder}", "--eval_period=1", "--UnFreeze_Epoch=2")
    command += ["--deterministic=True"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=PROJECT)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.match(r"epoch +1/2", line):
            process.send_signal(signal.SIGINT)
    first = process.wait()
    resumed = run([*command, "--resume=True"])
    weights = folder / "best_epoch_weights.pth"
    used = run(bench.command("predict.py", f"--model_path={weights}", f"--dir_save_path={folder}", "--confidence=0.01"))
    (folder / "output.txt").write_text("".join(lines) + resumed.stdout + used.stdout, encoding="utf-8")
    statuses = first, resumed.returncode, used.returncode
    bench.report("train, SIGINT, resume, predict", f"exit statuses {statuses}", statuses == (130, 0, 0))
    whole = "".join(lines) + resumed.stdout
    for pattern in (r"preflight: .*", r"epoch +2/2.*", r".* took .* GiB .*preflight.*", r".*CUDA graph.*"):
        for text in re.findall(pattern, whole):
            bench.report("it says", text[:220])
    again = run([*command[:2], f"--save_dir={folder}_whole", *command[3:]])
    ends = [re.findall(r"epoch +2/2.*?val +([\d.]+)", text) for text in (whole, again.stdout)]
    bench.report(
        "as if never stopped (deterministic)", f"validation losses {ends}", bool(ends[0]) and ends[0] == ends[1]
    )


@item
def queries(bench):
    """D-FINE, whose step is no graph: its time in each precision, and a training whose batch size is measured."""
    for case in (("dfine_n", 16, 416), ("dfine_s", 16, 640)) if bench.large else (("dfine_n", 2, 64),):
        for name, dtype in bench.precisions.items():
            optim, network, batch = make(bench, case, dtype, optimizer_type="adamw")
            step = partial(optim.train_step, network, *batch, host_targets=batch[1].cpu())
            total, host = milliseconds(bench, step)
            loss = step()[1]["loss"].item()
            memory = torch.cuda.max_memory_allocated() / 2**30 if bench.large else 0
            text = f"{total:.1f} ms (host {host:.1f}), {case[1] / total * 1e3:.0f} images/s, {memory:.1f} GiB, "
            bench.report("{} b{}@{} {}".format(*case, name), f"{text}loss {loss:.2f}", math.isfinite(loss))
            del optim, network, batch, step
            if bench.large:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    folder, side = bench.folder / "queries", 256 if bench.large else 96
    arguments = [f"--save_dir={folder}", "--model_name=dfine_n", "--Unfreeze_batch_size=0", "--UnFreeze_Epoch=2"]
    done = run(bench.command("train.py", *arguments, f"--input_shape=[{side},{side}]"))
    for pattern in (r"Unfreeze_batch_size is 0 .*", r"epoch +2/2.*"):
        for text in re.findall(pattern, done.stdout):
            bench.report("it says", text[:220])
    bench.report("a training of dfine_n", f"exit status {done.returncode}", done.returncode == 0)


def run(command):
    """Run a command to its end in the project. Returns its CompletedProcess, with all that it wrote in stdout."""
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=PROJECT, check=False
    )


@item
def devices(bench):
    """A run of the device goes on on the CPU, and there again; scores on both agree."""
    folder = bench.folder / "training"
    arguments = ["train.py", f"--save_dir={folder}", "--resume=True", "--eval_period=1", "--compile="]
    for number, flags in ((3, ["--Cuda=False"]), (4, [] if bench.large else ["--Cuda=False"])):
        done = run([sys.executable, *arguments, f"--UnFreeze_Epoch={number}", *flags])
        line = re.findall(rf"epoch +{number}/{number}.*", done.stdout)
        bench.report(f"epoch {number} {' '.join(flags)}", (line or done.stdout.splitlines()[-1:])[0][:150], bool(line))
    found = []
    for flags in (["--Cuda=False"], [] if bench.large else ["--Cuda=False"]):
        out = bench.folder / f"map{len(found)}"
        script = [sys.executable, "tools/get_map.py", f"--model_path={folder / 'best_epoch_weights.pth'}"]
        lists = "--annotation_path=VOCdevkit/Sample/ImageSets/Main/val.txt"
        run([*script, lists, f"--map_out_path={out}", "--resamplings=0", *flags])
        found.append(json.loads((out / "results.json").read_text(encoding="utf-8"))["AP"])
    bench.report("AP on the CPU and here", f"{found[0]:.4f} {found[1]:.4f}", abs(found[0] - found[1]) < 0.002)


@item
def launcher(bench):
    """One process under torchrun: nccl on a GPU, gloo on a CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    arguments = ["train.py", f"--save_dir={bench.folder / 'torchrun'}", "--UnFreeze_Epoch=1"]
    done = run([*command, *arguments, *([] if bench.large else ["--Cuda=False"])])
    line = re.findall(r"epoch +1/1.*", done.stdout)
    text = (line or done.stdout.splitlines()[-1:])[0][:150]
    bench.report("1 process", text, done.returncode == 0 and bool(line))


@item
def loading(bench):
    """Images per second of a real training with each cache, to hold against the bare step of the same size."""
    epochs, side, copies = (4, 416, 20) if bench.large else (1, 64, 1)
    train_list = copies_of_sample(bench.folder / "sample", copies)
    for cache in ("", "ram", "gpu"):
        name = cache or "none"
        constants = [f"--cache={cache}", f"--UnFreeze_Epoch={epochs}", f"--input_shape=[{side},{side}]"]
        constants += ["--Unfreeze_batch_size=16", "--eval_flag=False", f"--train_annotation_path={train_list}"]
        done = run(bench.command("train.py", f"--save_dir={bench.folder / 'loading'}", *constants))
        line = re.findall(r"([\d.]+) images/s  data wait +(\d+)%", done.stdout)
        text = f"{line[-1][0]} images/s, data wait {line[-1][1]} %" if line else done.stdout[-300:]
        bench.report(f"cache {name}", text, done.returncode == 0)


def copies_of_sample(folder, copies):
    """The training images of the sample, several times under other names. Returns the path of the split."""
    sample = PROJECT / "VOCdevkit" / "Sample"
    numbers = (sample / "ImageSets" / "Main" / "train.txt").read_text(encoding="utf-8").split()
    for part, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for copied in range(copies):
            for number in numbers:
                shutil.copyfile(sample / part / (number + suffix), folder / part / f"{copied}_{number}{suffix}")
    path = folder / "ImageSets" / "Main" / "train.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{copied}_{number}\n" for copied in range(copies) for number in numbers), encoding="utf-8")
    return path


@item
def marked_tests(bench):
    """The tests that are marked cuda."""
    done = run([sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "tests"])
    bench.report("pytest -m cuda", done.stdout.strip().splitlines()[-1][:150], done.returncode in (0, 5))


@item
def compiled(bench):
    """The step of the smallest network with torch.compile, and how long that takes to begin."""
    if not bench.large:
        return bench.report("yolox_nano", "left out on a CPU, where it takes minutes")
    optim, network, batch = make(bench, bench.cases[0], torch.bfloat16)
    start = time.perf_counter()
    network = compile_network(network, optim, tuple(batch[0].shape))
    optim.train_step(network, *batch)
    bench.synchronize()
    began = time.perf_counter() - start
    total, host = milliseconds(bench, lambda: optim.train_step(network, *batch))
    return bench.report(
        "{} b{}@{}".format(*bench.cases[0]), f"{total:.1f} ms (host {host:.1f}), {began:.0f} s to begin"
    )


if __name__ == "__main__":
    run_script(main, read_constants(globals()))
