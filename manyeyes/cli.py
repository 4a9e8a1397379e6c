"""The command line: parse, call one function, print. Heavy packages are imported inside the commands."""

from __future__ import annotations

import errno
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from manyeyes import __version__
from manyeyes.errors import ConfigError, ManyeyesError, RunError

if TYPE_CHECKING:
    from manyeyes.experiments.study import Study

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Many frozen eyes on one manufactured part, fused into one verdict. Only pictures of good parts are needed.",
)
synthesize = typer.Typer(no_args_is_help=True, help="Draw a data set of made parts, defects and masks included.")
app.add_typer(synthesize, name="synthesize")

Out = Annotated[Path, typer.Option("--out", help="folder to write to")]
Json = Annotated[Path | None, typer.Option("--json", help="write the figures to this file; - prints them")]
Rate = Annotated[float | None, typer.Option("--false-alarm-rate", help="alarm at another rate than the run's, in 0..1")]
Threshold = Annotated[float | None, typer.Option("--threshold", help="alarm from this score on")]
Seed = Annotated[int, typer.Option(help="another one draws other parts")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1")]
PrecisionName = Literal["auto", "float32", "float16", "bfloat16"]
Precision = Annotated[PrecisionName, typer.Option(help="precision of the trunks")]
Batch = Annotated[int, typer.Option("--batch-size", min=1, help="pictures per forward pass")]
LAYOUTS = "how the image set lies on disk: auto, folder, mvtec-ad, mvtec-loco, visa, mpdd, btad or mtd"
Layout = Annotated[
    str,
    typer.Option(
        metavar="KIND|FILE.yaml",
        help=f"{LAYOUTS}; or a YAML file that names its folders: {{kind: folder, train: [normal], defective: [dents]}}",
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="list unreadable pictures and leave them out")]
Compile = Annotated[bool, typer.Option("--compile", help="compile the trunks first; CUDA only, pays on many pictures")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress bars")]
Choose = Annotated[
    bool, typer.Option("--choose", help="let made defects choose the fusion and the weights of all heads")
]
Datas = Annotated[list[Path] | None, typer.Option("--data", help="folder of pictures; may be given more than once")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override a field: fusion.components=128")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"manyeyes {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print it and leave")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: `manyeyes demo --out demo`")
def demo(out: Out = Path("demo"), seed: Seed = 0, quiet: Quiet = False) -> None:
    """Make a data set, train four ensembles, print their table and write a report. Takes minutes, needs no download."""
    from manyeyes.experiments.demo import run_demo
    from manyeyes.progress import shown

    with shown(quiet) as progress:
        study = run_demo(out, seed=seed, progress=progress)
    _print_study(study)


@app.command(epilog="Example: `manyeyes train bundled --data parts/connector --out runs/connector --set seed=1`")
def train(
    config: Annotated[str, typer.Argument(help="a preset's name or a YAML file")],
    data: Annotated[Path, typer.Option("--data", help="folder of pictures")],
    out: Out,
    set_: Set = None,
    choose: Choose = False,
    layout: Layout = "auto",
    labelled: Annotated[
        Path | None,
        typer.Option(help="folder with good and defective pictures, for combiners that learn from labels"),
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: Batch = 8,
    skip_bad: SkipBad = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on with a killed run in the same folder")] = False,
    quiet: Quiet = False,
) -> None:
    """Train an ensemble on good pictures and write a run folder."""
    from manyeyes.data import layout_of, read_image_set
    from manyeyes.ensemble import load_config, train_run, with_choice
    from manyeyes.progress import shown

    declared = load_config(config, set_ or ())
    if choose:
        declared = with_choice(declared)
    image_set = read_image_set(data, layout_of(layout))
    known = read_image_set(labelled, layout_of(layout), train=False) if labelled else None
    _tell((*image_set.notes, *(known.notes if known else ())))
    with shown(quiet) as progress:
        ensemble = train_run(
            declared,
            image_set,
            out,
            device=device,
            batch_size=batch_size,
            precision=precision,
            skip_bad=skip_bad,
            resume=resume,
            labelled=known,
            progress=progress,
        )
    _tell(ensemble.notes)
    typer.echo(f"run: {out}")


@app.command(epilog="Example: `manyeyes evaluate runs/connector --data parts/connector --json figures.json`")
def evaluate(
    run: Annotated[Path, typer.Argument(help="run folder")],
    data: Annotated[Path, typer.Option("--data", help="folder of pictures with a test split")],
    json: Json = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", help="write a CSV file with the verdict on every test picture")
    ] = None,
    layout: Layout = "auto",
    false_alarm_rate: Rate = None,
    threshold: Threshold = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: Batch = 8,
    skip_bad: SkipBad = False,
    compile_: Compile = False,
    quiet: Quiet = False,
) -> None:
    """Measure a run on the test pictures of a set."""
    from manyeyes.data import layout_of, read_image_set
    from manyeyes.experiments.evaluation import Alarm, evaluate_run, in_words, summary
    from manyeyes.progress import shown

    _require_place(json)
    _require_place(pictures)
    if pictures == STDOUT:
        raise ConfigError("--pictures -: expected the name of a file; only --json prints")
    if pictures and json and pictures.absolute() == json.absolute():
        raise ConfigError(f"--pictures {pictures}: is the file that --json names, too; choose another")
    image_set = read_image_set(data, layout_of(layout))
    _tell(image_set.notes)
    with shown(quiet) as progress:
        figures = evaluate_run(
            run,
            image_set,
            device=device,
            precision=precision,
            batch_size=batch_size,
            skip_bad=skip_bad,
            compiled=compile_,
            alarm=Alarm(false_alarm_rate, threshold),
            table=pictures,
            progress=progress,
        )
    if json:
        _put(json, figures)
    _print_table(summary(figures), aside=_is_stdout(json))
    for line in (*(f"left out: {entry['reason']}" for entry in figures["left_out"]), *in_words(figures)):
        typer.echo(line, err=_is_stdout(json))


@app.command(epilog="Example: `manyeyes predict runs/connector new/*.png --out verdicts --json verdicts.json`")
def predict(
    run: Annotated[Path, typer.Argument(help="run folder")],
    paths: Annotated[list[Path], typer.Argument(help="pictures or folders of pictures")],
    out: Out,
    json: Json = None,
    false_alarm_rate: Rate = None,
    threshold: Threshold = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: Batch = 8,
    skip_bad: SkipBad = False,
    compile_: Compile = False,
    quiet: Quiet = False,
) -> None:
    """Score pictures: heatmaps, masks and maps; boxes, scores and decisions in OUT/verdicts.json and .csv."""
    from manyeyes.experiments.evaluation import Alarm
    from manyeyes.experiments.prediction import predict_paths
    from manyeyes.experiments.verdict_list import VERDICTS
    from manyeyes.progress import shown

    _require_place(json)
    with shown(quiet) as progress:
        verdicts = predict_paths(
            run,
            paths,
            out,
            device=device,
            precision=precision,
            batch_size=batch_size,
            skip_bad=skip_bad,
            compiled=compile_,
            alarm=Alarm(false_alarm_rate, threshold),
            progress=progress,
        )
    if json and json.absolute() != (out / VERDICTS).absolute():  # there they stand already, with those of other calls
        _put(json, verdicts)
    for entry in verdicts["left_out"]:
        typer.echo(f"left out: {entry['reason']}", err=_is_stdout(json))
    alarms = sum(item["alarm"] for item in verdicts["pictures"])
    typer.echo(f"{len(verdicts['pictures'])} pictures, {alarms} alarms: {out}", err=_is_stdout(json))


@app.command(epilog="Example: `manyeyes compare bundled-score bundled-global --data parts/connector --out study`")
def compare(
    configs: Annotated[list[str], typer.Argument(help="presets or YAML files; without --data, one that is a study")],
    out: Out,
    data: Datas = None,
    set_: Set = None,
    choose: Choose = False,
    seeds: Annotated[str | None, typer.Option(help="comma-separated; by default 0")] = None,
    folds: Annotated[int | None, typer.Option(min=0, help="cross-validate each training with this many folds")] = None,
    baseline: Annotated[str | None, typer.Option(help="ensemble to compare with; by default the first")] = None,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="fit each ensemble also without each of its members")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="processes at the same time, which share the cores")] = 1,
    ray: Annotated[str | None, typer.Option(help="run on a Ray cluster: its address, or local")] = None,
    layout: Layout = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: Batch = 8,
    skip_bad: SkipBad = False,
    quiet: Quiet = False,
) -> None:
    """Compare ensembles on sets: a table and a report page. Features are extracted once, finished cells are kept.

    With --choose each ensemble also stands with its fusion chosen, as NAME-auto.
    """
    from manyeyes.experiments.compare import run_study
    from manyeyes.experiments.declaration import named_study, seeds_of
    from manyeyes.experiments.engines import engine_of
    from manyeyes.progress import shown

    numbers = None if seeds is None else seeds_of(seeds)
    declared = named_study(configs, data, set_ or (), layout).but(
        seeds=numbers, folds=folds, baseline=baseline, leave_one_out=leave_one_out, choose=choose
    )
    for image_set in declared.sets:
        _tell(image_set.notes)
    with shown(quiet) as progress:
        study = run_study(
            declared.ensembles,
            declared.sets,
            out,
            seeds=declared.seeds,
            folds=declared.folds,
            device=device,
            precision=precision,
            batch_size=batch_size,
            skip_bad=skip_bad,
            repetitions=declared.repetitions,
            baseline=declared.baseline,
            engine=engine_of(jobs, ray),
            progress=progress,
        )
    _print_study(study)


@app.command(
    epilog="Example: `manyeyes distill --images photographs --trunk resnet18.tv_in1k --out pdn_small.safetensors`"
)
def distill(
    images: Annotated[Path, typer.Option("--images", help="folder of natural pictures, any sizes, any depth")],
    out: Annotated[Path, typer.Option("--out", help="file to write, .safetensors; figures go beside it")],
    trunk: Annotated[str, typer.Option(help="timm model to learn from, with or without tag")] = "resnet18",
    stages: Annotated[str, typer.Option(help="its stages, comma-separated, 384 channels or more together")] = "2,3",
    size: Annotated[Literal["small", "medium"], typer.Option(help="PDN-S or PDN-M")] = "small",
    set_: Annotated[list[str] | None, typer.Option("--set", help="override a field: steps=5000")] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Distil a teacher for EfficientAD from a trunk; the same call goes on with a killed one."""
    from manyeyes.experiments.distilling import distil_folder, distillation_config
    from manyeyes.progress import shown

    config = distillation_config(trunk, stages, size, set_ or ())
    with shown(quiet) as progress:
        found = distil_folder(config, images, out, device=device, progress=progress)
    typer.echo(f"teacher: {out}, explains {found.overall:.3f} of the variance on {found.pictures} held-out pictures")


@synthesize.command("flat-connector", epilog="Example: `manyeyes synthesize flat-connector --out parts/connector`")
def flat_connector(out: Out, seed: Seed = 0, quiet: Quiet = False) -> None:
    """A brushed-metal flat connector with holes, logical and structural defects, in the LOCO layout."""
    from manyeyes.data.synthesize import synthesize_flat_connector
    from manyeyes.progress import shown

    with shown(quiet) as progress:
        synthesize_flat_connector(out, seed=seed, progress=progress.step("drawing flat connectors"))
    typer.echo(f"data set: {out}")


@app.command(epilog="Example: `manyeyes metrics maps --data mvtec_loco/juice_bottle --json figures.json`")
def metrics(
    maps: Annotated[Path, typer.Argument(help="folder of anomaly maps: MAPS/test/DEFECT/NAME.tiff or .npy")],
    data: Annotated[Path, typer.Option("--data", help="folder with the ground truth")],
    json: Json = None,
    layout: Layout = "auto",
) -> None:
    """Measure anyone's anomaly maps with the same ruler."""
    from manyeyes.experiments.metrics.maps import evaluate_maps

    _put(json or STDOUT, evaluate_maps(maps, data, layout=layout))


@app.command(epilog="Example: `manyeyes schema > ensemble.schema.json`")
def schema() -> None:
    """Print the JSON schema of the config, for editors."""
    import json as js

    from manyeyes.ensemble import EnsembleConfig

    typer.echo(js.dumps(EnsembleConfig.model_json_schema(), indent=2))


@app.command(epilog="Example: `manyeyes presets bundled > mine.yaml`")
def presets(name: Annotated[str | None, typer.Argument(help="print this one as YAML")] = None) -> None:
    """List the presets, or print one as YAML to start from."""
    from manyeyes.ensemble import PRESETS, load_config

    if name:
        typer.echo(load_config(name).to_yaml())
        return
    for preset in PRESETS.values():
        typer.echo(f"{preset.name:<22} {preset.summary}")


def _tell(notes: tuple[str, ...] | list[str]) -> None:
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def _print_study(study: Study) -> None:
    for rows in study.tables():
        _print_table(rows)
    typer.echo(f"report: {study.report}")


STDOUT = Path("-")


def _is_stdout(json: Path | None) -> bool:
    from manyeyes.files import is_stdout

    return json is not None and (json == STDOUT or is_stdout(json))


def _require_place(file: Path | None) -> None:
    """Fails now, not when the figures are there."""
    from manyeyes.files import make_folder

    if file is None or _is_stdout(file):
        return
    if file.is_dir():
        raise RunError(f"{file}: is a folder; expected the name of a file to write")
    if file.is_file() or not file.exists():  # a pipe or a device takes no other file beside it
        make_folder(file.parent)


def _put(json: Path, values: Any) -> None:
    import json as js

    from manyeyes.files import write_json

    if _is_stdout(json):
        typer.echo(js.dumps(values, indent=2))
    else:
        write_json(json, values)


def _print_table(rows: list[dict[str, str]], aside: bool = False) -> None:
    """Print rows as a table whose columns are the keys of the first; ``aside`` on standard error."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(rows[0] if rows else ()):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row.values())
    stream = sys.stderr if aside else sys.stdout
    Console(width=None if stream.isatty() else 160, stderr=aside).print(table)


# Typer re-exports only this child of Click's error for wrong arguments, and newer versions bring their own Click.
WrongArguments: Any = typer.BadParameter.__mro__[1]
INTERRUPTED = 130


def main() -> None:
    """Entry point: every error that a user can mend is one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what a terminal cannot show is no reason to stop
            stream.reconfigure(errors="replace")
    try:
        status = app(standalone_mode=False)
    except ManyeyesError as error:
        _leave(str(error))
    except WrongArguments as error:
        message, context = error.format_message(), error.ctx
        help_of = context.command_path if context else "manyeyes"
        _leave(f"{message} (see `{help_of} --help`)" if message else "")  # without a message, help was printed
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename:
            raise
        from manyeyes.files import reason_of

        _leave(f"the output cannot be written: {reason_of(error)}")
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and type(error).__name__ != "OutOfMemoryError":  # torch's
            raise
        _leave(f"out of memory ({error}); take a smaller batch, fewer pictures at once, or --device cpu")
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    if status == INTERRUPTED:
        typer.echo(f"manyeyes: stopped; {_going_on(sys.argv[1:])}", err=True)
    if isinstance(status, int):  # what --help, --version and typer.Exit leave with
        raise SystemExit(status)


def _going_on(words: list[str]) -> str:
    """What an interrupted command has left, and how it goes on."""
    command = next((word for word in words if not word.startswith("-")), "")
    return {
        "train": "finished parts are kept, and the same command with --resume goes on",
        "compare": "finished cells are kept, and the same command goes on",
        "demo": "finished cells are kept, and the same command goes on",
        "distill": "the last checkpoint is kept, and the same command goes on",
        "predict": "what was written is kept, with a list of it in verdicts.json",
    }.get(command, "nothing is left half-written")


def _leave(message: str) -> NoReturn:
    if message:
        typer.echo(f"manyeyes: {' '.join(message.split())}", err=True)
    raise SystemExit(2) from None
