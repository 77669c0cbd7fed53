"""Which model, strategy, rate and length suit this data: `python scripts/advise.py [group=choice] [key=value]`.

Measured on training and validation, from features of the frozen body; rules in src/thaw/recommend/rules.py. With
`--models resnet18,convnext` it chooses among these of conf/model. Nothing is trained, and nothing is left but features
in the cache.
"""

import shlex
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from thaw import command, config


@hydra.main(config_path=str(config.CONF), config_name="config", execution_whitelist=config.EXECUTION_WHITELIST)
@command.reports_errors
def advise(cfg: DictConfig) -> None:
    # torch comes with these, and must not slow down --help.
    from rich.markup import escape

    from thaw.console import console, quiet_lightning, say
    from thaw.recommend import told
    from thaw.recommend.advice import advise_on, cost
    from thaw.recommend.candidates import with_model, without

    def compose(overrides: list[str]) -> DictConfig:
        return hydra.compose("config", overrides=[*overrides])

    quiet_lightning()
    with open_dict(cfg):
        names = cfg.pop("models", [])
    given = without(list(HydraConfig.get().overrides.task), ["models"])
    own = HydraConfig.get().runtime.choices["model"]
    commands = {name: with_model(name, given, compose) for name in names} or {own: given}
    advice = advise_on({name: (words, compose(words)) for name, words in commands.items()})
    for name, reason in advice.left_out.items():
        say(f"[yellow]{name} is left out:[/] {escape(reason)}")
    say(told.data_in_words(advice.chosen))
    console.print(told.evidence_table(advice.candidates, advice.chosen))
    for line in [*told.advice_in_words(advice.choices), *told.remarks(advice.chosen)]:
        say(line)
    say(cost(compose(advice.overrides)))
    say(shlex.join(["python", "train.py", *advice.overrides]))


def as_override(words: list[str]) -> list[str]:
    """`--models a,b` in the words of Hydra."""
    joined = "\0".join(words).replace("--models\0", "--models=").split("\0")
    return [f"+models=[{word.partition('=')[2]}]" if word.startswith("--models=") else word for word in joined]


if __name__ == "__main__":
    sys.argv = as_override(sys.argv)
    command.main(advise)
