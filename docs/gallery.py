"""Draws the figures of docs/gallery.md and of the tutorials, from short runs on data that is bundled.

    python docs/gallery.py --store gallery.db

Some minutes on two cores. Trials are kept in the store, so that pictures alone can be drawn anew in seconds.
`--only ranked episodes` draws some groups. The pictures are WebP files in `docs/images/gallery/`.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from outeropt import Archive, Space, Store, optimizers, sweep, tasks, use_all_cores
from outeropt.bench import epochs, reporting, sets, suites
from outeropt.bench.pictures import episodes, figures, replicate_figures, restart_figures
from outeropt.bench.pictures import hyperparameter_figures as moving
from outeropt.bench.pictures.controllers import controller_figure
from outeropt.bench.profiles import profiles as performance_profiles
from outeropt.bench.run import run_all
from outeropt.selftuning import Baydin, OnePass, RandomStart


FOLDER = Path(__file__).parent / "images" / "gallery"
DIGITS = "ImageMLP_Digits_Relu32"
PLAYERS = ("momentum", "adamw", "nadamw_cosine", "lion", "prodigy", "schedule_free_adamw")
RANKED = {DIGITS: 200, "ImageMLPAE_Digits_32x8x32_bs128": 200, "Linear_100_cond1000": 400}

Jobs = dict[str, Callable[[], Figure]]


def ranked(store: Store) -> Jobs:
    """Six optimizers, tuned and as is, on three tasks."""
    suite = dataclasses.replace(suites.get("bundled"), steps=RANKED)
    archives = run_all(suite.plan(PLAYERS), store)
    board, normalizer = reporting.ranked(archives)
    assert board and normalizer
    tuned = [archive for archive in archives if archive.set.endswith("-lr")]
    return {
        "ranking": lambda: figures.ranking(board),
        "heat_map": lambda: figures.heat_map(board),
        "learning_curves": lambda: figures.learning_curves(tuned, leaderboard=board),
        "one_task": lambda: figures.learning_curves(
            [archive for archive in tuned if archive.task == DIGITS], "valid/loss", leaderboard=board
        ),
        "sensitivity": lambda: figures.sensitivity(tuned, leaderboard=board),
        "tunability": lambda: figures.tunability(tuned, normalizer, leaderboard=board),
        "profiles": lambda: figures.profiles(performance_profiles(tuned, normalizer)),
    }


def tuned_in_episodes(store: Store) -> Jobs:
    """Optimizers that learn from one training to the next, beside one that was tuned beforehand."""
    names = ("adamw-lr", "metaopt-default", "hypergradient:adam-default", "prodigy-default")
    everyone = [sets.get(name).adapted(steps=150, episodes=4, seeds=3) for name in names]
    archives = run_all({"Digits_MLP_FixedBatch": everyone}, store)
    controller = sweep(
        tasks.get("Digits_MLP_FixedBatch"),
        optimizers.get("metaopt", memory=6),
        seeds=3,
        steps=150,
        episodes=4,
        store=store,
        set="metaopt-memory6",
        optimizer_name="metaopt",
    )
    return {
        "episodes": lambda: episodes.episode_figure(archives),
        "controller": lambda: controller_figure(controller),
    }


def restarted(store: Store) -> Jobs:
    """Forty random starts of SGD as it is, of Baydin's rule, and of one-pass tuning."""
    ranges = {
        "learning_rate": Space.log(1e-5, 1.0),
        "weight_decay": Space.log(1e-6, 1e-2),
        "momentum": Space.linear(0.0, 0.99),
    }
    base = optimizers.get("heavy_ball")
    methods = {
        "random": base,
        "baydin": Baydin(base),
        "one-pass": OnePass(base, tune=tuple(ranges)),
    }
    task = tasks.get(DIGITS)
    archives: list[Archive] = [
        sweep(
            task,
            RandomStart(method, ranges),
            seeds=40,
            steps=1000,
            eval_every=20,
            store=store,
            set=f"{name}-restarts",
            optimizer_name=name,
        )
        for name, method in methods.items()
    ]
    return {
        "restarts": lambda: restart_figures.final_distribution(archives),
        "restarts_median": lambda: restart_figures.median_curves(archives),
        "incumbents": lambda: restart_figures.incumbents(archives),
        "trajectories": lambda: moving.trajectories(archives),
        "hyperparameters": lambda: moving.hyperparameter_bands(archives),
    }


def replicated(store: Store) -> Jobs:
    """Four replicates of two learned optimizers, and Adam, over 60 epochs of the digits."""
    base = sets.get("adam-default").adapted(seeds=4)
    names = [f"amalgam-{kind}-{i}" for kind in ("mean", "choice-small") for i in (1, 2, 3, 4)]
    everyone = [*(sets.learned(name, base) for name in names), base]
    archives = run_all(epochs.plan([DIGITS], everyone, 60), store)
    return {
        "replicates": lambda: replicate_figures.replicate_boxes(archives),
        "epochs": lambda: replicate_figures.epoch_curves(archives),
        "phases": lambda: replicate_figures.phases(archives),
    }


GROUPS = {
    "ranked": ranked,
    "episodes": tuned_in_episodes,
    "restarts": restarted,
    "replicates": replicated,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("gallery.db"))
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    given = parser.parse_args()
    use_all_cores()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with Store(given.store) as store:
        for group in given.only:
            for name, draw in GROUPS[group](store).items():
                figure, path = draw(), FOLDER / f"{name}.webp"
                figure.savefig(path, dpi=130, pil_kwargs={"quality": 80, "method": 6})
                print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
