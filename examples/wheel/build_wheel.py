# Owns a small wheel that stands for a large one from the internet: it installs and imports slowly, as those do.
# Runs in a sandbox, with Python's standard library alone. Invariant: the same bytes each time.
import base64
import hashlib
import zipfile

NAME, VERSION = "slowcast", "1.0"
MODULES = 60

INIT = f'''"""Stands for a library that takes long to import."""
__version__ = "{VERSION}"
from importlib import import_module
TABLE = [import_module(f"{NAME}.part{{number}}").value() for number in range({MODULES})]

def forecast(values):
    return round(sum(values) / len(values) + TABLE[0], 3)
'''


def part(number: int) -> str:
    """Enough to be worth compiling."""
    functions = "\n".join(f"def f{index}(x):\n    return x * {index} + {number}" for index in range(40))
    return f"{functions}\n\ndef value():\n    return f0(1) * 0\n"


files = {f"{NAME}/__init__.py": INIT}
files.update({f"{NAME}/part{number}.py": part(number) for number in range(MODULES)})
info = f"{NAME}-{VERSION}.dist-info"
files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n"
files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: example\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def record_line(name: str, text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(text.encode())}"


record = "\n".join([record_line(name, text) for name, text in files.items()] + [f"{info}/RECORD,,", ""])
with zipfile.ZipFile(f"{NAME}-{VERSION}-py3-none-any.whl", "w") as wheel:
    for name, text in {**files, f"{info}/RECORD": record}.items():
        wheel.writestr(zipfile.ZipInfo(name), text)
