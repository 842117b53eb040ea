"""Every public name of the three packages, under the name that was installed.

    import echoset
    teacher = echoset.load_teacher()

Names are imported when they are first used, so that importing the package stays cheap. The three
packages themselves are found beside this one, even where a script in the current folder has the
name of one of them.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill import *  # noqa: F403
    from inversion import *  # noqa: F403
    from synthesis_kernels.errors import EchosetError as EchosetError

PACKAGES = ("synthesis_kernels", "distill", "inversion")
HOME = next(
    folder for folder in Path(__file__).parents if (folder / "inversion" / "__init__.py").is_file()
)
"""The folder that holds the three: site-packages, or the root of the repository."""


def _import_packages() -> None:
    """Import the three from `HOME`; later imports of their parts then need no search."""
    sys.path.insert(0, str(HOME))
    try:
        for name in PACKAGES:
            package = import_module(name)
            folder = Path(package.__file__ or "").resolve().parent
            if folder != (HOME / name).resolve():
                raise ImportError(
                    f"'{name}' is {package.__file__} here, which hides echoset's package of that "
                    "name: rename it, or import echoset before it"
                )
    finally:
        sys.path.remove(str(HOME))


_import_packages()
_HOMES = {
    **dict.fromkeys(sys.modules["distill"].__all__, "distill"),
    **dict.fromkeys(sys.modules["inversion"].__all__, "inversion"),
    "EchosetError": "synthesis_kernels.errors",
}
__version__ = sys.modules["inversion"].__version__
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'echoset' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
