"""Keep the film of three codebooks for its chapter: aclam/results/codebook_film.json.

    python tools/keep_films.py --commit COMMIT

Three trainings of a tiny model, about a minute of one core.
"""

import argparse
from pathlib import Path

from aclam.core import write_json
from aclam.studies.animations import check_film, codebook_film

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--commit", required=True, help="of the code that is run")
    commit = parser.parse_args().commit
    film = codebook_film()
    for name, (codes, error) in check_film(film).items():
        print(f"{name}: {codes} codes, error {error:.2f}")
    command = f"python tools/keep_films.py --commit {commit}"
    write_json(
        ROOT / "aclam/results/codebook_film.json", {"command": command, "commit": commit, **film}
    )


if __name__ == "__main__":
    main()
