"""`stemma evaluate --task preference`: how often one model's responses are preferred to another's."""

import json

from rich.console import Console


def evaluate_preference(
    model: str,
    prompts: str,
    against: str,
    judge: str,
    judge_model: str | None,
    *,
    longest: int,
    temperature: float,
    most: int | None,
    seed: int,
    device: str,
    as_json: bool,
) -> None:
    """Print the win rate of `model` over `against`."""
    from stemma.alignment.preference import judge_of, prefer, writer_of
    from stemma.cli.devices import device_named
    from stemma.training.hardware import prepare_processor

    prepare_processor()
    place = device_named(device)
    decide = judge_of(judge, judge_model, place)
    how = {"longest": longest, "temperature": temperature, "seed": seed, "most": most, "device": place}
    writers = [writer_of(name, prompts, **how) for name in (model, against)]  # type: ignore[arg-type]
    found = prefer(writers[0](), writers[1](), decide)
    rate = found.win_rate
    if as_json:
        summary = {"model": model, "against": against, "judge": judge, "prompts": found.prompts}
        summary |= {"win_rate": rate.estimate, "interval": [rate.low, rate.high]}
        summary |= {"wins": found.wins, "ties": found.ties, "losses": found.losses}
        summary |= {"consistent": found.consistent, "words": found.words, "longer_wins": found.longer_wins}
        print(json.dumps(summary))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{model} against {against}, {found.prompts:,} prompts, judged by {judge}", markup=False)
    console.print(
        f"  win rate {rate.estimate:.1%}, 95 % interval {rate.low:.1%} to {rate.high:.1%}: {found.wins:,} wins, "
        f"{found.ties:,} ties, {found.losses:,} losses"
    )
    console.print(f"  words of a response: {found.words[0]:.1f} against {found.words[1]:.1f}")
    if found.longer_wins is not None:
        console.print(f"  the longer response won {found.longer_wins:.1%} of the decided pairs")
    if found.consistent < 1:
        console.print(f"  the judge said the same in both orders of {found.consistent:.1%} of the pairs")
