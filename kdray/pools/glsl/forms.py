"""The forms in which a fragment program may be written, and the GLSL that each of them becomes.

`mainImage` is Shadertoy's form. The others have `main`: TwiGL's classic form, which is GLSL Sandbox's too, and its geek
and geeker forms, in GLSL ES 1.00 or 3.00.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kdray.errors import ConfigError
from kdray.utils.files import shown

SUFFIXES = (".frag", ".glsl")
"""Endings of the files that are programs."""

_PRELUDE = Path(__file__).with_name("prelude.glsl")
_BUILTIN = Path(__file__).with_name("programs")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", flags=re.DOTALL)
_MAIN_IMAGE = re.compile(r"\bvoid\s+mainImage\s*\(")
_IMAGE_OUTPUT = re.compile(r"(\bvoid\s+mainImage\s*\(\s*)out\b")
_BODY = re.compile(r"\bvoid\s+main\s*\(\s*(?:void\s*)?\)\s*\{")
_MAIN = re.compile(r"\bvoid\s+main\s*\(")
_VERSION = re.compile(r"^[ \t]*#[ \t]*version\b([^\n]*)", flags=re.MULTILINE)
_EXTENSION = re.compile(r"^[ \t]*#[ \t]*extension\b[^\n]*", flags=re.MULTILINE)
_OUTPUT = re.compile(r"\bout\s+(?:(?:high|medium|low)p\s+)?vec4\s+(\w+)\s*;")
_PRECISION = "precision highp float;\nprecision highp int;\n"
_GEEKER = "uniform vec2 r;uniform vec2 m;uniform float t;uniform float f;uniform float s;uniform sampler2D b;\n"

_IMAGE_HEAD = """#version 300 es
precision highp float;
precision highp int;
uniform vec3 iResolution;
flat in vec4 kd_corner;
flat in float iTime;
flat in vec4 iSeed;
flat in vec4 iMouse;
flat in uint kd_random;
const float iTimeDelta = 1.0 / 60.0;
const float iFrameRate = 60.0;
const vec4 iDate = vec4(2000.0, 0.0, 1.0, 0.0);
#define iFrame int(iTime * iFrameRate)
out vec4 kd_colour;
"""
_IMAGE_TAIL = """
void main() {
    vec4 colour = vec4(0.0, 0.0, 0.0, 1.0);
    mainImage(colour, (gl_FragCoord - kd_corner).xy);
    kd_colour = colour;
}
"""
_IMAGE_VERTEX = """#version 300 es
uniform vec2 kd_sheet;
uniform vec3 iResolution;
in vec2 kd_place;
in float kd_top;
in float kd_time;
in vec4 kd_seed;
in vec4 kd_mouse;
flat out vec4 kd_corner;
flat out float iTime;
flat out vec4 iSeed;
flat out vec4 iMouse;
flat out uint kd_random;
uint mixed(uint x) {
    x = (x ^ (x >> 16)) * 0x2C1B3C6Du;
    x = (x ^ (x >> 15)) * 0x297A2D39u;
    return x ^ (x >> 15);
}
void main() {
    uvec4 s = floatBitsToUint(kd_seed);
    kd_random = mixed(s.x ^ mixed(s.y ^ mixed(s.z ^ mixed(s.w))));
    kd_corner = vec4(0.0, kd_top, 0.0, 0.0);
    iTime = kd_time;
    iSeed = kd_seed;
    iMouse = kd_mouse;
    gl_Position = vec4(2.0 * (kd_place * iResolution.xy + kd_corner.xy) / kd_sheet - 1.0, 0.0, 1.0);
}
"""


@dataclass(frozen=True)
class Program:
    """A program as OpenGL compiles it.

    Attributes:
        name: of its file.
        vertex, fragment: GLSL. Each candidate has a part of one sheet of pixels, and the coordinates of its fragments
            begin at `kd_corner`.
        instanced: whether time and seeds are attributes of an instance, so that one call draws many candidates. If not,
            they are uniforms, and a call draws one.
    """

    name: str
    vertex: str
    fragment: str
    instanced: bool


def builtin_programs() -> list[Program]:
    """The programs that come with kdray, by name."""
    prelude = _PRELUDE.read_text(encoding="utf-8")
    files = sorted(_BUILTIN.glob("*.glsl"))
    return [_of_image(file.stem, file.read_text(encoding="utf-8"), prelude) for file in files]


def read_folder(folder: str) -> tuple[list[Program], dict[str, str]]:
    """The programs in the files of a folder, sorted by name, and those in no known form: name -> why.

    Raises:
        ConfigError: there is no such folder, or it has no programs.
    """
    path = Path(folder)
    try:
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
        texts = {file.name: file.read_text(encoding="utf-8", errors="replace") for file in files}
    except OSError as error:
        raise ConfigError(f"pool.programs: {shown(path)} cannot be read: {error.strerror}; name a folder") from None
    if not texts:
        raise ConfigError(f"pool.programs: no file of {shown(path)} ends in {' or '.join(SUFFIXES)}")
    programs, left_out = [], {}
    for name, text in texts.items():
        try:
            programs.append(parse(name, text))
        except ConfigError as error:
            left_out[name] = str(error)
    return programs, left_out


def parse(name: str, text: str) -> Program:
    """The program that a user's file holds.

    Args:
        name: of the file.
        text: its content.

    Raises:
        ConfigError: it is in no known form.
    """
    code = _COMMENT.sub(lambda comment: " " + "\n" * comment[0].count("\n"), text)
    if _MAIN_IMAGE.search(code):
        # What is out has any value at first, and many a program adds to it as if that were 0, as in a browser
        return _of_image(name, _IMAGE_OUTPUT.sub(r"\1inout", code))
    if _MAIN.search(code):
        return _of_main(name, code)
    raise ConfigError("it has neither main() nor mainImage()")


def digest(programs: Iterable[Program]) -> str:
    """24 hexadecimal digits that change with the name or the GLSL of a program."""
    # A file's name may have bytes that are not UTF-8
    texts = [text for program in programs for text in (program.name, program.vertex, program.fragment)]
    return hashlib.sha256("\0".join(texts).encode(errors="surrogateescape")).hexdigest()[:24]


def _of_image(name: str, text: str, prelude: str = "") -> Program:
    fragment = f"{_IMAGE_HEAD}{prelude}#line 1\n{_local(text)}{_IMAGE_TAIL}"
    return Program(name, _IMAGE_VERTEX, fragment, True)


def _of_main(name: str, code: str) -> Program:
    """A program with `main`. Its declarations stay as they are, and what the geeker forms leave out is added."""
    found = _VERSION.search(code)
    version = " ".join(found[1].split()) if found else "100" if "gl_FragColor" in code else "300 es"
    if version not in ("100", "300 es"):
        raise ConfigError(f"its #version is {version}, and 100 and 300 es are accepted")
    modern = version == "300 es"
    extensions = "".join(f"{line.strip()}\n" for line in _EXTENSION.findall(code))  # must precede all else
    head = f"#version {version}\n{extensions}{_PRECISION}uniform vec4 kd_corner;\n"
    if not re.search(r"\buniform\b", code):
        head += _GEEKER
    output = ""
    if not modern and "gl_FragColor" in code:
        output = "gl_FragColor"
    elif modern and (found := _OUTPUT.search(code)):
        output = found[1]
    elif modern:
        output, head = "o", f"{head}out vec4 o;\n"
    body = _EXTENSION.sub("", _VERSION.sub("", code))
    if output:
        body = _BODY.sub(lambda main: f"{main[0]}{output}=vec4(0);", body, count=1)
    place = f"#version {version}\n{'in' if modern else 'attribute'} vec2 kd_place;\n"
    vertex = f"{place}void main() {{ gl_Position = vec4(2.0 * kd_place - 1.0, 0.0, 1.0); }}\n"
    return Program(name, vertex, f"{head}#line 1\n{_local(body)}\n", False)


def _local(code: str) -> str:
    """The same GLSL with coordinates that begin at the candidate's corner of the sheet."""
    return re.sub(r"\bgl_FragCoord\b", "(gl_FragCoord-kd_corner)", code)
