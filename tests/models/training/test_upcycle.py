import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from plait.models.checkpoint import newest_checkpoint
from plait.models.config import ModelConfig
from plait.models.experts import Experts
from plait.models.training.run_config import RunConfig, read_config
from plait.models.training.upcycle import of_preset, suggested, upcycle
from plait.pipeline import cli
from plait.pipeline.config import build, read_toml
from plait.tokenizers.errors import ConfigError
from plait.train import Run

from ...runs import weights
from ..conftest import CONFIGS

DENSE = ModelConfig(dim=32, n_layers=2, hidden_dim=48)
SEEDS = {
    "dense": DENSE,
    "ffn by modality": replace(DENSE, untie=("ffn", "o")),
    "one expert": replace(DENSE, channels=("experts",), experts=(1,), untie=("norm",)),
}
SLOTS = {"memory_keys": 8, "memory_top_k": 4}
MOT = replace(DENSE, untie=("qkv", "o", "ffn", "norm"))
MIXTURE = CONFIGS["mixture_of_mamba"]


@pytest.mark.parametrize(
    ("seed", "grown"),
    [
        (DENSE, MOT),
        (replace(DENSE, untie=("o",), norm="post"), replace(MOT, norm="post")),
        (replace(MIXTURE, untie=()), MIXTURE),
        (replace(CONFIGS["mot_memory"], untie=()), CONFIGS["mot_memory"]),
        (DENSE, replace(DENSE, channels=("ffn", "ffn+memory"), **SLOTS)),
        (MOT, replace(MOT, channels=("ffn+memory",), norm="pre", **SLOTS)),
        (replace(MIXTURE, untie=()), replace(MIXTURE, channels=("none", "memory"), untie=())),
    ],
    ids=["MoT", "post", "Mixture-of-Mamba", "memory", "dense memory", "MoT memory", "Mamba memory"],
)
def test_untied_copies_say_what_the_shared_part_said(seed, grown, new_decoder, new_batch):
    decoder, batch = new_decoder(seed), new_batch([(9, 14), (5, 3, 11)], padding=2)
    decoder.set_prior(torch.arange(decoder.vocabulary.size) % 5)
    new = upcycle(decoder, grown).eval()
    assert new.config == grown
    torch.testing.assert_close(new(batch), decoder(batch), rtol=0, atol=1e-5)
    new.loss(batch).sum_M.sum().backward()
    stacked = [p.grad for p in new.parameters() if p.grad is not None and len(p) == 3]
    assert any((grad[0] != grad[1]).any() for grad in stacked), "copies learn apart"
    outs = [p.grad for n, p in new.named_parameters() if n.endswith(("channel.out", "memory.out"))]
    assert bool(outs) == grown.has_memory
    assert all(grad is not None and grad.any() for grad in outs), "what begins at zero learns"


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("experts", [(4,), (2, 3, 1)])
def test_experts_with_equal_gates_are_the_seed(seed, experts, new_decoder, new_batch, monkeypatch):
    decoder, batch = new_decoder(SEEDS[seed]), new_batch([(9, 14), (5, 3, 11)], padding=2)
    config = replace(suggested(SEEDS[seed]), experts=experts, capacity=9.0)
    new = upcycle(decoder, config).train()
    share_out_evenly(monkeypatch)
    said_JV, wanted_JV = (d(batch)[~batch.padding_BT] for d in (new, decoder.train()))
    torch.testing.assert_close(said_JV, wanted_JV, rtol=0, atol=1e-5)


def test_depth_is_drawn_anew_or_kept(new_decoder):
    grown = replace(suggested(DENSE), depth_capacity=0.25)
    new = upcycle(new_decoder(DENSE), grown)
    router = new.blocks[0].depth.router
    assert router.weight.any() and not router.threshold_E.any()
    router.threshold_E.fill_(0.7)
    one = replace(DENSE, channels=("experts",), experts=(1,), depth_capacity=0.25)
    seed = new_decoder(one)
    kept = upcycle(seed, replace(one, experts=(2,))).blocks[0].depth.router
    assert torch.equal(kept.weight, seed.blocks[0].depth.router.weight)
    again = upcycle(new, replace(grown, untie=("o",), router_noise=0.0))
    assert again.blocks[0].depth.router.threshold_E == router.threshold_E
    assert torch.equal(again.blocks[0].depth.router.weight, router.weight)
    assert torch.equal(again.blocks[0].channel.router.weight, new.blocks[0].channel.router.weight)


def share_out_evenly(monkeypatch) -> None:
    """Gates of 1/n where n experts took a token."""
    forward = Experts.forward

    def even(self, x_ND, context, norm=None):
        route = self.router.forward

        def choose(x_ND, context):
            choice = route(x_ND, context)
            n_N = torch.bincount(choice.row_J, minlength=len(x_ND))
            return replace(choice, gate_J=1 / n_N[choice.row_J].float())

        with monkeypatch.context() as patch:
            patch.setattr(self.router, "forward", choose)
            return forward(self, x_ND, context, norm)

    monkeypatch.setattr(Experts, "forward", even)


@pytest.mark.parametrize("seed", SEEDS)
def test_each_expert_is_a_copy_and_routers_are_new(seed, new_decoder):
    decoder = new_decoder(SEEDS[seed])
    if seed == "one expert":
        for block in decoder.blocks:
            block.channel.router.threshold_E.fill_(0.5)
    random = torch.get_rng_state()
    config = replace(suggested(SEEDS[seed]), experts=(2, 4, 1))
    new, again, other = (upcycle(decoder, config, s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), random)
    old = decoder.blocks[1].channel
    one_M = old.gate_up if seed == "one expert" else old.gate_up.weight
    part = new.blocks[1].channel
    for expert, m in enumerate([0, 0, 1, 1, 1, 1, 2]):
        assert torch.equal(part.gate_up[expert], one_M[m if len(one_M) > 1 else 0])
    assert len({tuple(row.tolist()) for row in part.router.weight}) == 7
    assert not part.router.threshold_E.any()
    states = [decoder_.state_dict() for decoder_ in (new, again, other)]
    differing = [name for name in states[0] if not torch.equal(states[0][name], states[2][name])]
    assert differing and all("router" in name for name in differing)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    kept = [n for n in decoder.state_dict() if "channel." not in n]
    assert all(torch.equal(decoder.state_dict()[n], states[0][n]) for n in kept)


def test_what_is_suggested():
    for seed in SEEDS.values():
        wanted = ("experts",), (4,), 1.0
        model = suggested(seed)
        assert (model.channels, model.experts, model.router_noise) == wanted
    assert suggested(CONFIGS["mixture_of_mamba"]) == CONFIGS["mixture_of_mamba"]
    assert suggested(CONFIGS["moma"]) == CONFIGS["moma"]
    assert suggested(CONFIGS["mot_memory"]).channels == ("experts", "memory")


@pytest.mark.parametrize(
    ("seed", "grown", "message"),
    [
        (DENSE, DENSE, "nothing would change; say what should: --preset mot, --model"),
        (DENSE, replace(MOT, n_layers=3), r"model\.n_layers: 2 in the run, now 3; .* has to stay"),
        (DENSE, replace(MOT, channels=("ffn", "memory")), "block 1 has 'ffn' .* become 'memory'"),
        (CONFIGS["moma"], replace(CONFIGS["moma"], channels=("ffn",)), "ffn becomes experts"),
        (MOT, replace(DENSE, untie=("qkv",)), r"untie: o, ffn, norm .* --model.untie qkv o ffn"),
        (MOT, replace(MOT, untie=("qkv", "o", "norm")), "ffn of the run have weights for each"),
        (
            CONFIGS["moma"],
            replace(CONFIGS["moma"], experts=(8,)),
            r"experts: \[4, 4, 4\] in the run, now \[8, 8, 8\]; only one .* --model.experts 4$",
        ),
        (DENSE, replace(suggested(DENSE), experts=(2, 2)), r"experts: \[2, 2\] for 3 modalities"),
        (
            replace(DENSE, channels=("experts", "ffn"), experts=(1,)),
            replace(DENSE, channels=("experts",), experts=(2,)),
            "one of them at a time",
        ),
        (
            replace(DENSE, depth_capacity=0.5),
            replace(MOT, depth_capacity=0.5, depth_every=1),
            r"blocks \[0\] of the run are passed by some tokens only, now \[0, 1\]",
        ),
    ],
)
def test_what_does_not_fit_says_what_to_do(seed, grown, message, new_decoder):
    with pytest.raises(ConfigError, match=message):
        upcycle(new_decoder(seed), grown)


@pytest.mark.parametrize(
    ("seed", "preset", "channels", "untie"),
    [
        (DENSE, "mot", ("ffn",), ("qkv", "o", "ffn", "norm")),
        (replace(DENSE, untie=("o",)), "moma", ("experts",), ("o",)),
        (replace(DENSE, untie=("ffn",)), "moma", ("experts",), ()),
        (DENSE, "memory", ("ffn", "ffn+memory"), ()),
        (replace(MIXTURE, untie=()), "mixture_of_mamba", ("none",), ("in", "x", "dt", "out")),
        (replace(MIXTURE, untie=()), "memory", ("none", "memory"), ()),
    ],
)
def test_a_presets_parts(seed, preset, channels, untie, new_decoder):
    model = of_preset(seed, preset)
    assert (model.channels, model.untie) == (channels, untie)
    assert (model.dim, model.n_layers, model.mixers) == (seed.dim, seed.n_layers, seed.mixers)
    assert model.router_noise == ("experts" in channels)
    assert upcycle(new_decoder(seed), model).config == model


def test_a_preset_that_does_not_fit_or_is_none(new_decoder):
    with pytest.raises(ConfigError, match="no 'mott'; there is dense, "):
        of_preset(DENSE, "mott")
    with pytest.raises(ConfigError, match=r"model\.untie: 'in' belongs to 'mamba'"):
        of_preset(DENSE, "mixture_of_mamba")
    with pytest.raises(ConfigError, match=r"memory_gate: a memory without it cannot begin as noth"):
        upcycle(new_decoder(DENSE), replace(of_preset(DENSE, "memory"), memory_gate=False))


SMALL = [
    *("--model.dim", "32", "--model.n-heads", "2", "--rows.seq-len", "128", "--device", "cpu"),
    *("--rows.batch-size", "2", "--steps", "4", "--validation.batches", "2", "--log.every", "1"),
]


@pytest.fixture(scope="module")
def dense_run(sample_stream, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "dense"
    assert (
        cli.main(["train", "dense", "--data", str(sample_stream), "--out", str(out), *SMALL]) == 0
    )
    return out


def state(run: Path) -> dict:
    newest = newest_checkpoint(run)
    assert newest is not None
    return json.loads((newest / "state.json").read_text())


def test_the_new_run_goes_on_with_the_next_rows(dense_run, sample_stream, tmp_path, capsys):
    out = tmp_path / "new"
    words = ["upcycle", str(dense_run), "--out", str(out), "--model.experts", "2"]
    assert cli.main([*words, "--optimizer.lr", "1e-3"]) == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("next: plait ").split()
    config = build(RunConfig, read_toml(out / "config.toml"), "config.toml")
    assert config.model.channels == ("experts",)
    assert (config.model.experts, config.model.router_noise) == ((2,), 1.0)
    seen: list[torch.Tensor] = []
    run = Run(read_config(command[1:]))
    losses = run._losses

    def watch(batch, plan, **more):
        if run.model.training:
            seen.append(batch.tokens_BT)
        return losses(batch, plan, **more)

    run._losses = watch
    run.train()
    assert run.step == 4 and run.loader.step == 8
    assert [b.tolist() for b in seen] == [
        run.loader.batch(i).tokens_BT.tolist() for i in (4, 5, 6, 7)
    ]
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1 and first["lr"] == pytest.approx(1e-3 / 30), "the schedule is new"
    seed = json.loads((dense_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert first["tokens"] > seed["tokens"]
    made = json.loads((out / "environment.json").read_text())
    assert made["upcycled_from"].endswith("dense/checkpoints/step-4") and made["data"]
    assert cli.main(["inspect", str(out)]) == 0


def test_a_fresh_state_is_the_state_before_the_first_step(dense_run, tmp_path):
    out = tmp_path / "new"
    assert cli.main(["upcycle", str(dense_run), "--out", str(out)]) == 0
    run = Run(read_config([str(out / "config.toml")]))
    bare = Run(read_config([str(out / "config.toml")]))
    run._open_folder()
    bare.model.load_state_dict(run.model.state_dict())
    for r in (run, bare):
        for p in r.model.parameters():
            p.grad = torch.ones_like(p)
        r.optimizer.step(1.0)
    states = zip(run.model.state_dict().values(), bare.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in states)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--out", "new"], "nowhere: not a run's folder"),
        (["RUN"], "name the new run's folder with --out NEW"),
        (["RUN", "--out", "there"], "there: exists already"),
        (["RUN", "--out", "new", "--rows.seq-len", "64"], "rows.seq_len: 128 in .*, now 64; the"),
        (["RUN", "--out", "new", "--seed", "3"], "what orders them has to stay"),
        (["RUN", "--out", "new", "--model.channels", "ffn"], "nothing would change"),
        (["RUN", "--out", "new", "--model.dim", "64"], "model.dim: 32 in the run, now 64"),
        (["RUN", "--out", "new", "--optimizer.only", "oxiliary"], "no parameter has oxiliary"),
    ],
)
def test_wrong_use_writes_nothing(words, message, dense_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    assert cli.main(["upcycle", *(str(dense_run) if w == "RUN" else w for w in words)]) == 2
    found = capsys.readouterr().err
    assert re.search(message, found), found
    assert not Path("new").exists()


def test_auxiliary_routers_are_trained_and_nothing_else(sample_stream, tmp_path, capsys):
    """Their agreement with what the experts take rises."""
    run, out = tmp_path / "moma", tmp_path / "new"
    more = ["--model.n-layers", "2", "--steps", "10"]
    words = ["train", "moma", "--data", str(sample_stream), "--out", str(run), *SMALL, *more]
    assert cli.main(words) == 0
    routers = ["--model.causal-choice", "auxiliary", "--model.router-noise", "0"]
    routers += ["--optimizer.only", "auxiliary"]
    routers += ["--steps", "100", "--optimizer.lr", "1e-2", "--log.every", "100"]
    assert cli.main(["upcycle", str(run), "--out", str(out), *routers]) == 0
    before = agreement(out)
    assert cli.main(["train", str(out / "config.toml")]) == 0
    old, new = weights(run, "model"), weights(out, "model")
    assert all(torch.equal(value, new[name]) for name, value in old.items())
    assert {name.rpartition(".")[2] for name in new.keys() - old.keys()} == {
        "auxiliary_in",
        "auxiliary_out",
    }
    assert state(out)["loader"]["step"] == 110
    after = agreement(out)
    assert after > before + 0.2, (before, after)


def agreement(run: Path) -> float:
    """Pairs of token and expert that are both chosen and told, among those that are either."""
    training = Run(read_config([str(run / "config.toml")]))
    training._open_folder()
    same: list[torch.Tensor] = []

    def compare(router, inputs, choice) -> None:
        x_ND, context = inputs
        eyes = [torch.zeros(len(x_ND), sum(router.sizes)) for _ in range(2)]
        told = type(router).forward(router, x_ND, replace(context, leaking=False))
        for chosen_NE, pairs in zip(eyes, (choice, told), strict=True):
            expert_J = torch.arange(len(pairs.counts)).repeat_interleave(torch.tensor(pairs.counts))
            chosen_NE[pairs.row_J, expert_J] = 1
        same.append((eyes[0] * eyes[1]).sum() / torch.maximum(*eyes).sum())

    for block in training.model.eval().blocks:
        block.channel.router.register_forward_hook(compare)
    rows = training._rows("validation")
    with torch.no_grad():
        training.model.loss(rows.batch(range(4)), leaking=True)
    return float(torch.stack(same).mean())
