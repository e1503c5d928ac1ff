"""Snippets in the documents run, compose or parse; terms that the project has replaced do not return."""

import ast
import importlib
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from omegaconf import OmegaConf
from PIL import Image

import benchmarks.__main__
from glc.cli import main
from glc.codec.weights.file import read_weights
from glc.codec.weights.variants import save_variant
from glc.launch.overrides import examine
from tests.codec.fixed_model import fixed_codec_weights, fixed_image
from tests.losses.test_perceptual import FILES, reference, save_features
from tests.programs import load_script
from tests.stress.harness import Stress

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    *sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "docs").rglob("*.md")
        if path.parent.name != "notebook"
    ),
]
PROGRAM = re.compile(r"(glc|make|pip|pytest) |python (-m|scripts/)|torchrun |srun |/usr/bin/time ")
"""How a command in the documents begins."""
FLAGS = ("-m", "--multirun", "--cfg", "job", "--config-dir")
"""Hydra's own words in the documents' commands."""


def fences(document: str) -> list[tuple[str, str]]:
    """Language and text of a document's code blocks, also of those in a list."""
    found = re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", (ROOT / document).read_text(), re.M | re.S)
    return [(match[2], match[3]) for match in found]


def shell(document: str) -> list[list[str]]:
    """The commands of a document, in their order: those of its shell blocks, and those in its text."""
    blocks = [text for language, text in fences(document) if language == "sh"]
    prose = re.sub(r"^( *)```.*?^\1```$", "", (ROOT / document).read_text(), flags=re.M | re.S)
    inline = [code for code in re.findall(r"`([^`\n]+)`", prose) if PROGRAM.match(code)]
    return [command for text in [*blocks, *inline] for command in commands_in(text)]


def commands_in(text: str) -> Iterator[list[str]]:
    """Yield the commands of a shell text: loops unrolled, variables replaced, pipes split."""
    text = re.sub(r"\\\|", "|", text.replace("\\\n", " "))
    text = re.sub(
        r"for (\w+) in ([^;]+); do (.*?); done",
        lambda m: "; ".join(m[3].replace(f"${m[1]}", value) for value in m[2].split()),
        text,
    )
    variables: dict[str, str] = {"D": "data.train=a data.val=b"}
    for name, value in re.findall(r'^(\w+)="([^"\n]*)"$', text, re.M):
        variables[name] = value
    text = re.sub(r"\$(\w+)", lambda m: variables.get(m[1], m[1]), text)
    for line in text.splitlines():
        lexer = shlex.shlex(
            re.sub(r"\[(-[^\]]*)\]|\.\.\.(?!\w)", r"\1", line), posix=True, punctuation_chars=True
        )
        lexer.whitespace_split = True
        command: list[str] = []
        for token in lexer:
            if set(token) <= set("();<>|&"):
                yield command
                command = []
            else:
                command.append(token)
        yield command


def arguments_of(command: list[str], *program: str) -> list[str] | None:
    """The words of a command after a program's name, which `srun` and others may come before."""
    for start in range(len(command) - len(program) + 1):
        if tuple(command[start : start + len(program)]) == program:
            return command[start + len(program) :]
    return None


@cache
def check_composes(config: str, *words: str) -> None:
    """Compose a configuration from a command line, a sweep with the first value of each key."""
    if any(word.startswith(("hydra.searchpath", "KEY=")) for word in words):
        return  # tests/test_extending.py runs them
    if not words or words[0] == "--completion":
        return  # a program named in the text; tests/launch/test_completion.py
    overrides = [word for word in words if "=" in word]
    assert set(words) - set(overrides) <= set(FLAGS), words
    cfg = examine(overrides, config).cfg
    assert cfg is not None
    if config == "train" and not OmegaConf.is_missing(cfg.data, "train"):
        assert cfg.data.batch_size >= 1


def check_glc(words: list[str]) -> None:
    """Parse the words after `glc` with the options of the command; commands of Hydra's are composed."""
    if words[:1] in (["-v"], ["--verbose"]):
        words = words[1:]
    if not words or words == ["COMMAND"] or words[0].startswith("-"):
        assert set(words) <= {"--version", "--help", "COMMAND"}
        return
    command = main.get_command(click.Context(main), words[0])
    assert command is not None, f"glc {words[0]}: no such command"
    context = click.Context(command, **command.context_settings)
    try:
        options, arguments, _ = command.make_parser(context).parse_args(words[1:])
    except click.BadOptionUsage:
        return  # an option named without its value, as in `glc compress --encoder`
    for parameter in command.get_params(context):
        if (
            isinstance(parameter, click.Option)
            and isinstance(parameter.type, click.Choice)
            and parameter.name in options
        ):
            parameter.type.convert(options[parameter.name], parameter, context)
    if words[0] in ("train", "eval"):
        given = options["arguments"] if isinstance(options["arguments"], tuple | list) else ()
        more = ["testset=shards"] if words[0] == "eval" and "--shards" in words else []
        config = {"train": "train", "eval": "evaluate"}[words[0]]
        check_composes(config, *given, *arguments, *more)


def check_options(program: str, words: list[str], known: str) -> None:
    """Check that a program's help names the options in a command."""
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{program}: no option {word}"


def help_of(
    script: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What a script's `-h` prints; the options of a plan for run_stages.py."""
    monkeypatch.setattr(sys, "argv", [script, *(words[:1] if script == "run_stages" else []), "-h"])
    with pytest.raises(SystemExit) as end:
        load_script(script).main()
    assert end.value.code == 0
    return capsys.readouterr().out


def check_pytest(words: list[str]) -> None:
    """Check that tests and `--stress KEY=VALUE` exist."""
    for word in words:
        if word.startswith("tests/"):
            assert (ROOT / word.partition("::")[0]).exists(), word
    given = [words[i + 1] for i, word in enumerate(words) if word == "--stress"]
    Stress.read(True, [re.sub(r"(rounds|seed)=\w+", r"\1=1", word) for word in given])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_exist_with_their_options(
    document: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in shell(document):
        if (words := arguments_of(command, "src.train")) is not None:
            check_composes("train", *words)
        elif (words := arguments_of(command, "src.evaluate")) is not None:
            check_composes("evaluate", *words)
        elif (words := arguments_of(command, "benchmarks")) is not None:
            names = {*benchmarks.__main__.NAMES, *benchmarks.__main__.WHEN_NAMED, "NAME", "[NAME", "]"}
            assert not words or words[0].startswith("-") or words[0] in names, command
            with pytest.raises(SystemExit):
                benchmarks.__main__.main(["-h"])
            check_options("benchmarks", words, capsys.readouterr().out)
        elif command[:1] == ["python"] and command[1].startswith("scripts/"):
            words = command[2:]
            check_options(command[1], words, help_of(Path(command[1]).stem, words, monkeypatch, capsys))
        elif command[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(command[2]), command
        elif command[:1] == ["pytest"] or "pytest" in command[:2]:
            check_pytest(command)
        elif command[:1] == ["make"]:
            assert {word for word in command[1:] if word.islower() and "=" not in word} <= targets, command
        elif command[:2] == ["pip", "install"]:
            for names in re.findall(r"glc-codec\[([\w,]+)\]", " ".join(command)):
                assert set(names.split(",")) <= set(extras), command
        elif (words := arguments_of(command, "glc")) is not None:
            check_glc(words)
        capsys.readouterr()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_blocks_parse(document: str) -> None:
    for language, text in fences(document):
        assert language, f"{document}: a code block without a language: {text[:60]}"
        if language == "python":
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "glc":
                    module = importlib.import_module(str(node.module))
                    assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        elif language == "yaml":
            yaml.safe_load(text)
        elif language == "toml":
            tomllib.loads(text)
    text = (ROOT / document).read_text()
    assert not re.findall(r"^    (?:python|glc|pytest|make) .*", text, re.M), "put commands into ```sh blocks"


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "data/README.md"]
)
def test_lines_are_at_most_120_characters_long(document: str) -> None:
    lines = enumerate((ROOT / document).read_text("utf-8").splitlines(), 1)
    # Rows of tables cannot be broken; kodak.md is generated.
    generated = document == "docs/results/kodak.md"
    long = [
        number for number, line in lines if len(line) > 120 and not line.startswith("|") and not generated
    ]
    assert not long, f"{document}: break the lines {long}"


def test_there_are_commands() -> None:
    assert sum(len(shell(document)) for document in DOCUMENTS) >= 100


def codec_commands(document: str) -> list[str]:
    """The lines of a document's shell blocks that use the codec, in their order."""
    lines = [line.split("#")[0].strip() for language, text in fences(document) for line in text.splitlines()]
    # tests/test_hub.py has a hub.
    return [
        line
        for line in lines
        if re.match(r"glc (compress|decompress|info|models)\b", line) and "hf://" not in line
    ]


@pytest.mark.parametrize("document", ["README.md", "docs/codec.md"])
def test_codec_commands_run_as_printed(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "first"):
        fixed_codec_weights(tmp_path / f"{name}.safetensors")
    (tmp_path / "WEIGHTS").mkdir()
    save_features(reference("squeeze"), tmp_path / "WEIGHTS" / FILES["squeeze"])
    (tmp_path / "photos" / "summer").mkdir(parents=True)
    for name in ("photo.png", "mask.png", "photos/one.png", "photos/summer/two.png"):
        Image.fromarray(fixed_image(96, 128)).save(name)
    found = codec_commands(document)
    assert len(found) >= 2
    for line in found:
        # The test's codec has random weights: it cannot make files as small as the documents ask for.
        line = re.sub(r"--target-(bpp|size) [\d.]+", r"--target-size 100000", line)
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, (line, result.output)


def test_application_commands_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = read_weights(fixed_codec_weights(tmp_path / "mine.safetensors"))
    for name, kind in (("denoise", "encoder"), ("mosaic", "decoder")):
        state = getattr(weights.model, kind).state_dict()
        file = f"{name}.{kind}.safetensors"
        save_variant(file, kind, state, weights.description[kind], weights.fingerprint)  # type: ignore[arg-type]
    Image.fromarray(fixed_image(64, 64)).save("noisy.png")
    found = codec_commands("docs/applications.md")
    assert len(found) == 3
    for line in found:
        result = CliRunner().invoke(main, shlex.split(line)[1:])
        assert result.exit_code == 0, (line, result.output)


BANNED = {
    r"pictures?": "image",
    "in the box": "default, bundled",
    "the house": "project layout",
    "by heart": "overfit",
    "gone on|goes on": "resumed, continues",
    "none of an?": "not a",
    r"leave \S+ away": "omit",
    "companions?": "training weights",
    "slabs?": "row tiles",
    "whole numbers?": "integers",
    "trainings": "training runs",
    "for want of": "without",
    "exact networks?": "integer networks",
    "hyper (code|codes|module)": "hyper-latent, hyperprior",
    "exact[ _]arithmetic": "integer inference",
    "latent[ _]search": "latent optimisation",
    "codebook[ _]?care|revive[sd]?": "dead-code restart",
    "moving[ _]?average": "EMA",
    "sealed|seals?|torn|rotten": "checksum, truncated, corrupt",
    "claims?|claimed": "lock",
    "corpus|corpora": "shards, data set",
    "part[ _]?stage": "fine-tune stage",
    "studio": "web app, service",
    "standings?": "progress",
    "go on|going on": "resume, continue",
    "(?<!there )(?:is|are) no(?! longer| larger| access)": "is not a, there is no",
    "mend(?:s|ed|ing)?": "fix",
    "unasked": "automatically",
    "strangers?": "untrusted sources",
}
"""Terms that the project has replaced, as regular expressions, and what to write."""
ALLOWED = {
    "codebook[ _]?care|revive[sd]?": ('return "codebookcare"',),  # the keys of 0.1's checkpoints
    "moving[ _]?average": ("exponential moving average", 'return "movingaverage"'),
    "pictures?": ("renamed_option", "still-picture", 'settings["pictures"]'),
    "effort": (
        "--effort",
        "cjxl",
        "jpegxl",
        "jpeg xl",
        "jxl",
        "num_threads",
        "compressionlevel",
    ),
}
"""Words of a line in which a term is right: another program's option, or a key of version 0.1."""
PROSE = ("src", "conf", "docs", "README.md", "data/README.md", "CONTRIBUTING.md", "SECURITY.md", "Makefile")
LOGS = ("docs/notebook/", "docs/models/small/", "docs/images/")
"""Logs and records of runs, which are not rewritten."""


def prose_files() -> Iterator[Path]:
    for name in PROSE:
        root = ROOT / name
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            is_text = path.suffix in (".py", ".md", ".yaml", ".c", "") and path.is_file()
            if is_text and not str(path.relative_to(ROOT)).startswith(LOGS):
                yield path


@pytest.mark.parametrize("term", BANNED)
def test_replaced_terms_do_not_return(term: str) -> None:
    """Names count too: `companion` is found in `export_companion` and `LoadCompanion`."""
    pattern = re.compile(rf"(?<![A-Za-z])(?i:{term})(?![a-z])|(?<=[a-z])(?:{term.title()})(?![a-z])")
    refused = re.compile(rf'(?i)"[\w./=-]*(?:{term})[\w./=-]*": ')  # an entry of a table of renames
    found = []
    for path in prose_files():
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            allowed = any(word in line.lower() for word in ALLOWED.get(term, ())) or refused.search(line)
            if pattern.search(line) and not allowed:
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, f"write {BANNED[term]}:\n" + "\n".join(found)
