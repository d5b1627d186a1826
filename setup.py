"""Build aclam: what it is called, needs and installs is in settings.ini, its version in
aclam/__init__.py.
"""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]

STATUS = {
    "1": "1 - Planning",
    "2": "2 - Pre-Alpha",
    "3": "3 - Alpha",
    "4": "4 - Beta",
    "5": "5 - Production/Stable",
}


def lines(key: str) -> list[str]:
    """The entries of a key of settings.ini that has one to a line."""
    return [line.strip() for line in settings[key].splitlines() if line.strip()]


def version() -> str:
    """The version, read without importing the package; `nbdev-bump-version` edits it there."""
    text = (here / settings["lib_path"] / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'__version__ = "([^"]+)"', text).group(1)


setup(
    name=settings["lib_name"],
    version=version(),
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=settings["keywords"].split(),
    author=settings["author"],
    license_expression=settings["license"],
    python_requires=f">={settings['min_python']}",
    classifiers=[
        f"Development Status :: {STATUS[settings['status']]}",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=find_packages(include=[settings["lib_path"], f"{settings['lib_path']}.*"]),
    package_data={settings["lib_name"]: lines("package_data")},
    install_requires=lines("requirements"),
    extras_require={
        key.removesuffix("_requirements"): lines(key)
        for key in settings
        if key.endswith("_requirements")
    },
    entry_points={"console_scripts": lines("console_scripts")},
    zip_safe=False,
)
