"""The configuration: its defaults, its mistakes with their lines, the example."""

import datetime as dt
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from daemon import config as configuration
from daemon.config import SECTIONS, Config, load, parse
from daemon.config_example import example
from daemon.errors import ConfigError
from daemon.toml_lines import key_lines, line_of

ROOT = Path(__file__).resolve().parents[1]

SMALLEST = """
[library]
path = "/data/library"
[[watch]]
path = "/data/camera"
"""


def problems(text: str, base: Path = Path("/nowhere")) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(text, base=base)
    return caught.value.problems


def assert_marked_lines_are_told(text: str) -> None:
    """Every line that ends in `#! sentence` must be told with its number and that sentence, and no
    other problem; several sentences of one line are parted by `&`."""
    expected = [
        (number, sentence.strip())
        for number, line in enumerate(text.splitlines(), start=1)
        for sentence in (line.split("#!")[1].split(" & ") if "#!" in line else [])
    ]
    told = list(problems(text))
    for number, sentence in expected:
        found = [p for p in told if p.startswith(f"config.toml:{number}: ") and sentence in p]
        assert found, (number, sentence, told)
        told.remove(found[0])
    assert told == []


def test_the_smallest_configuration_has_the_documented_defaults() -> None:
    config = parse(SMALLEST, base=Path("/"))
    assert config.library.path == Path("/data/library")
    (watch,) = config.watch
    assert (watch.path, watch.pattern, watch.settle_s) == (Path("/data/camera"), None, 2.0)
    assert dict(watch.defaults) == {}
    assert config.calibration.min_frames == 5
    assert config.calibration.quiet_s == 60
    assert config.calibration.sigma == 3.0
    assert config.calibration.temperature_tolerance_c == 1.0
    assert dict(config.calibration.cameras) == {}
    assert config.lights.keep_calibrated is False
    assert config.lights.clean_cosmics == "auto"
    assert (config.stack.memory_mb, config.stack.scale) == (1500, "unit")
    assert config.stack.preview_px == 2000
    assert (config.service.rescan_s, config.service.end_of_night) == (300, dt.time(8, 0))
    assert (config.service.backup_keep, config.service.max_attempts) == (7, 3)


def test_a_full_configuration_is_read() -> None:
    config = parse(
        r"""
        library.path = "library"
        [[watch]]
        path = "~/camera"
        settle_s = 5
        pattern = '(?P<filter>[LRGB])_(?P<exposure>\d+)s'
        defaults = { type = "Light", gain = 100, temperature = -10.5, binning = "2x2" }
        [[watch]]
        path = "../other"
        [watch.defaults]
        camera = "ST-10"
        [calibration]
        quiet_s = 1
        [service]
        end_of_night = 07:30:00
        """,
        base=Path("/etc/lk"),
    )
    first, second = config.watch
    assert config.library.path == Path("/etc/lk/library")
    assert first.path == Path.home() / "camera"
    assert first.settle_s == 5.0
    assert first.pattern
    found = first.pattern.search("M8_R_15s.fits")
    assert found
    assert found.groupdict() == {"filter": "R", "exposure": "15"}
    assert dict(first.defaults) == {
        "type": "light",
        "gain": "100",
        "temperature": "-10.5",
        "binning": "2x2",
    }
    assert second.path == Path("/etc/other")
    assert dict(second.defaults) == {"camera": "ST-10"}
    assert config.calibration.quiet_s == 1.0
    assert config.service.end_of_night == dt.time(7, 30)


def test_records_cannot_be_changed() -> None:
    config = parse(SMALLEST, base=Path("/"))
    with pytest.raises(ValidationError):
        config.stack.memory_mb = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        config.watch[0].defaults["type"] = "dark"  # type: ignore[index]


def test_every_mistake_is_told_at_once_with_its_line() -> None:
    assert_marked_lines_are_told(r"""rescan_s = 3 #! rescan_s must stand below [service]
[library]
path = "/data/lib"
lights = 5                  #! unknown key lights; known are path
[[watch]]
path = "/data/cam"
pattern = '(?P<filter>[LR]' #! pattern is not a regular expression: missing )
[[watch]]
path = "/data/cam/lights"   #! inside one another
pattern = '(?P<filtr>[LR])' #! unknown group filtr; did you mean filter?
defaults = { type = "darks", gian = 3 } #! did you mean dark? & gian; did you mean gain?
[[watch]]
path = "/data/lib/x"        #! is inside the library
pattern = ''' #! no named group
]=[ [x] # "'''
settel_s = 3                #! settel_s; did you mean settle_s?
[watch.defaults]
exposure = "1,5"            #! exposure must be a number, not "1,5"
binning = 1.5               #! binning must be as "2" or "2x2", not 1.5
camera = true               #! camera must be text or a number
[calibration]
min_frame = 5               #! min_frame; did you mean min_frames?
quiet_s = "60"              #! quiet_s must be a number, without quotes, not "60"
sigma = nan                 #! sigma
temperature_tolerance_c = -1 #! temperature_tolerance_c is -1; it must be 0 or more
cameras = { "ZWO" = 5 }     #! ZWO must be a camera's name as text, not 5
scale = "adu"               #! scale; it belongs below [stack]
[lights]
clean_cosmics = "allways"   #! did you mean always?
keep_calibrated = "no"      #! must be true or false, without quotes, not "no"
[stack]
memory_mb = 3.5             #! memory_mb must be a whole number, not 3.5
preview_px = true           #! preview_px must be a whole number
scale = "unitt"             #! one of unit, adu, uint16, not "unitt"; did you mean unit?
[service]
end_of_night = "25:00"      #! must be a time of day such as "08:00", not "25:00"
backup_keep = -1            #! backup_keep is -1; it must be 0 or more
max_attempts = 0            #! max_attempts is 0; it must be 1 or more
[servise]                   #! unknown section servise; did you mean service?
x = 1
""")


def test_what_is_missing_is_told_with_what_to_write() -> None:
    library, watch = problems("[stack]\nmemory_mb = 1000\n")
    assert library.startswith("config.toml:1: [library] is missing: add `[library]`")
    assert watch.startswith("config.toml:1: [[watch]] is missing")
    (path,) = problems('[[watch]]\npath = "/a"\n\n[library]\n')
    assert path == 'config.toml:4: [library] path is missing: add `path = "/folder"`'
    (path,) = problems('library.path = "/a"\n\n[[watch]]\nsettle_s = 1\n')
    assert path.startswith("config.toml:3: [watch] path is missing")


def test_one_bracket_instead_of_two_is_understood() -> None:
    (problem,) = problems('library.path = "/a"\n[watch]\npath = "/b"\n')
    assert problem.startswith("config.toml:2: ")
    assert "[[watch]]" in problem


def test_a_section_that_is_a_value_is_understood() -> None:
    (problem,) = problems(f"stack = 5\n{SMALLEST}")
    assert problem == "config.toml:1: stack must be a section: write [stack] on a line of its own"


@pytest.mark.parametrize(
    ("text", "line", "remedy"),
    [
        ('[library]\npath = "C:\\Users\\me"\n', 2, "single quotes"),
        ("[library]\npath = /data\n", 2, "quotes"),
        ('[library]\npath = "/data\n', 2, "quote"),
        ("[stack]\n[stack]\n", 2, "twice"),
        ('[library]\npath = "/a"\npath = "/b"\n', 3, "twice"),
        ("a = 1\n\nhello\n", 3, "key = value"),
    ],
)
def test_broken_toml_is_told_with_its_line_and_a_remedy(text: str, line: int, remedy: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"config.toml:{line}: not TOML: ")
    assert remedy in problem


@pytest.mark.parametrize(
    ("library", "watch", "reason"),
    [
        ("/d/cam/out", "/d/cam", "inside the watched folder"),
        ("/d/cam", "/d/cam", "inside the watched folder"),
        ("/d", "/d/cam", "inside the library"),
        ("/d/cam/../cam/x", "/d/cam/", "inside the watched folder"),
    ],
)
def test_library_and_watched_folder_are_apart(library: str, watch: str, reason: str) -> None:
    text = f"[library]\npath = '{library}'\n[[watch]]\npath = '{watch}'\n"
    (problem,) = problems(text)
    assert reason in problem


def test_a_link_does_not_hide_that_the_library_is_inside(tmp_path: Path) -> None:
    (tmp_path / "camera" / "out").mkdir(parents=True)
    (tmp_path / "library").symlink_to(tmp_path / "camera" / "out")
    text = f"[library]\npath = '{tmp_path}/library'\n[[watch]]\npath = '{tmp_path}/camera'\n"
    assert "inside the watched folder" in problems(text)[0]


def test_folders_whose_names_only_begin_alike_are_apart() -> None:
    parse("library.path = '/d/camera2'\n[[watch]]\npath = '/d/camera'\n", base=Path("/"))


def test_a_watched_folder_that_does_not_exist_is_worth_a_word_only(tmp_path: Path) -> None:
    config = parse(
        f"library.path = '{tmp_path}/lib'\nwatch = [{{path = '{tmp_path}/cam'}}]\n",
        base=tmp_path,
    )
    (warning,) = configuration.warnings(config)
    assert str(tmp_path / "cam") in warning
    (tmp_path / "cam").mkdir()
    assert configuration.warnings(config) == ()


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    for path, sentence in (
        (tmp_path / "none.toml", "no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "latin.toml", "not UTF-8"),
    ):
        if path.suffix and "latin" in path.name:
            path.write_bytes(b"# caf\xe9\n")
        with pytest.raises(ConfigError, match=sentence) as caught:
            load(path)
        assert caught.value.problems[0].startswith(f"{path}: ")


def test_relative_folders_count_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc" / "config.toml"
    file.write_text("library.path = 'lib'\n[[watch]]\npath = '../cam'\n")
    monkeypatch.chdir(tmp_path)
    config = load(Path("etc/config.toml"))
    assert config.library.path == tmp_path / "etc" / "lib"
    assert config.watch[0].path == tmp_path / "cam"


# --- the example ---------------------------------------------------------------------------------


def test_the_example_is_every_setting_at_its_default() -> None:
    text = example(watch="/srv/camera", library="/var/lib/lightkeeper")
    smallest = parse(
        "library.path = '/var/lib/lightkeeper'\n[[watch]]\npath = '/srv/camera'\n", base=Path("/")
    )
    assert parse(text, base=Path("/")) == smallest
    written = tomllib.loads(text)
    for name, model in SECTIONS.items():
        section = written[name][0] if name == "watch" else written[name]
        assert set(section) | {"pattern", "defaults", "cameras"} >= set(model.model_fields)
    assert "#pattern = " in text
    assert "#cameras = " in text
    assert "#defaults = " in text


def test_the_settings_that_are_commented_out_in_the_example_work() -> None:
    text = re.sub(
        r"^#(?=pattern|defaults|cameras)", "", example(watch="/a", library="/b"), flags=re.MULTILINE
    )
    config = parse(text, base=Path("/"))
    (watch,) = config.watch
    assert config.calibration.cameras["ZWO CCD ASI2600MM Pro"] == "ZWO ASI2600MM Pro"
    assert watch.pattern
    found = watch.pattern.search("M8_Ha_300s_0001.fits")
    assert found
    assert found.groupdict() == {"target": "M8", "filter": "Ha", "exposure": "300"}
    assert watch.defaults["type"] == "light"


def test_the_file_in_the_repository_is_the_example() -> None:
    text = (ROOT / "config.toml").read_text(encoding="utf-8")
    assert text == example(watch="/srv/camera", library="/var/lib/lightkeeper")


@pytest.mark.parametrize("folder", ["/a b", '/q"u\\o#te', "/mäuse/🔭", "/tab\there"])
def test_any_folder_survives_the_example(folder: str) -> None:
    config = parse(example(watch=folder, library="/library"), base=Path("/"))
    assert config.watch[0].path == Path(folder)


def test_every_setting_is_documented() -> None:
    documented = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for section, model in SECTIONS.items():
        assert f"[{section}]" in documented
        for name in model.model_fields:
            assert f"`{name}`" in documented, f"[{section}] {name}"


def test_every_section_of_the_model_is_in_the_table_of_sections() -> None:
    assert set(SECTIONS) == set(Config.model_fields)
    assert all(issubclass(model, BaseModel) for model in SECTIONS.values())


# --- lines ---------------------------------------------------------------------------------------


TRICKY = """\
# [not.a.section]
a = "# no comment ] [ = \\" x"
b = [ 1, # a comment ]
  2,
]
c.d = '''
[e]
f = 1
'''
"quoted key".'x y' = {z = [1]}

[ g . h ]   # spaces
i = 1
[[j]]
k = 1
  [j.l]
  m = 2
[[j]]
k = \"\"\"one \\
"two" \"\"\"
[[j.n]]
o = 1979-05-27T07:32:00Z
[p]"""


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("a",), 2),
        (("b",), 3),
        (("c",), 6),
        (("c", "d"), 6),
        (("quoted key", "x y"), 10),
        (("g", "h"), 12),
        (("g", "h", "i"), 13),
        (("j", 0), 14),
        (("j", 0, "k"), 15),
        (("j", 0, "l", "m"), 17),
        (("j", 1), 18),
        (("j", 1, "k"), 19),
        (("j", 1, "n", 0, "o"), 22),
        (("p",), 23),
    ],
)
def test_lines_of_keys(key: tuple[str | int, ...], line: int) -> None:
    tomllib.loads(TRICKY)
    assert key_lines(TRICKY)[key] == line


def test_nothing_inside_a_string_or_comment_is_a_key() -> None:
    names = {key[0] for key in key_lines(TRICKY)}
    assert names == set(tomllib.loads(TRICKY))


def test_the_line_of_what_is_not_written_is_that_of_its_section() -> None:
    lines = key_lines(TRICKY)
    assert line_of(lines, ("j", 1, "missing")) == 18
    assert line_of(lines, ("quoted key", "x y", "z")) == 10
    assert line_of(lines, ("nothing",)) == 1
