from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from plait.models.generation.grammar import Walk
from plait.models.generation.sampling import Row, Sampling, contrast, pick, sample
from plait.pipeline.vocabulary import BOS
from plait.tokenizers.errors import ConfigError

from ..conftest import CONFIGS, empty_batch
from ..made_spans import spans
from ..test_causal import settle


def sharp(decoder, new_batch):
    """A decoder whose logits differ enough that what is sampled depends on the prompt."""
    settle(decoder, new_batch([(40, 30), (70,)], seed=1))
    torch.manual_seed(2)
    torch.nn.init.normal_(decoder.head, std=0.5)
    torch.nn.init.normal_(decoder.modality_head, std=0.5)
    return decoder


def prompt(number: int, length: int) -> tuple[int, ...]:
    """`<bos>` and text."""
    generator = np.random.default_rng(number)
    return (BOS, *(7 + generator.integers(40, size=length)).tolist())


def row(vocabulary, name: str, number: int, length: int, guided: bool = False) -> Row:
    own = spans(vocabulary)
    marker = () if name in ("text", "auto") else (own[name].begin,)
    return Row(
        prompt=(*prompt(number, length), *marker),
        walk=Walk.free(own, 20) if name == "auto" else Walk(own[name]),
        draws=np.random.default_rng((0, number)),
        unguided=(BOS, *marker) if guided else None,
    )


def rows(vocabulary, guided: bool) -> list[Row]:
    """All kinds of rows, with prompts of different lengths."""
    names = ["text", "image", "speech", "auto", "image", "text", "speech"]
    return [
        row(vocabulary, name, n, 3 * n % 11, guided and name != "text")
        for n, name in enumerate(names)
    ]


def by_whole_passes(decoder, one: Row, sampling: Sampling) -> None:
    """The same by a whole pass a token, and the formulas as they stand."""
    table = torch.from_numpy(decoder.vocabulary.modality_table)
    taken: list[int] = []
    while not one.walk.done:
        logits = []
        guided = one.unguided is not None and one.walk.modality in ("image", "speech")
        for before in (one.prompt, one.unguided if guided else one.prompt):
            ids_1T = torch.tensor([[*before, *taken]])
            batch = empty_batch(1, ids_1T.shape[1], decoder.vocabulary)
            batch = replace(
                batch,
                tokens_BT=ids_1T,
                modality_BT=table[ids_1T],
                document_BT=torch.zeros_like(batch.document_BT),
                position_BT=torch.arange(ids_1T.shape[1], dtype=torch.int32)[None],
            )
            logits.append(decoder(batch)[0, -1].detach().double())
        mixed_V = logits[1] + sampling.guidance * (logits[0] - logits[1])
        allowed = [id_ for ids in one.walk.allowed() for id_ in ids]
        if len(allowed) > 1:
            share = (mixed_V[allowed] / sampling.temperature).softmax(0).numpy()
            place = int(np.searchsorted(share.cumsum(), one.draws.random(), side="right"))
            taken.append(allowed[min(place, len(allowed) - 1)])
        else:
            taken.append(allowed[0])
        one.walk.take(taken[-1])


@pytest.mark.parametrize("name", ["dense", "mot", "hybrid", "auxiliary", "mixture_of_mamba"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_sampling_equals_whole_passes(name, guidance, new_decoder, new_batch, vocabulary):
    decoder = sharp(new_decoder(CONFIGS[name]), new_batch)
    sampling = Sampling(temperature=0.8, guidance=guidance)
    fast, slow = (rows(vocabulary, guidance != 1) for _ in range(2))
    sample(decoder, fast, sampling)
    for one in slow:
        by_whole_passes(decoder, one, sampling)
    assert [one.walk.parts for one in fast] == [one.walk.parts for one in slow]


def test_a_sample_does_not_depend_on_the_rows_beside_it(config, new_decoder, new_batch, vocabulary):
    decoder, sampling = sharp(new_decoder(config), new_batch), Sampling(guidance=1.5, top_p=0.95)
    found = []
    for batch_size in (1, 3, 32):
        made = rows(vocabulary, guided=True)
        sample(decoder, made, sampling, batch_size)
        found.append([one.walk.parts for one in made])
    made = rows(vocabulary, guided=True)
    sample(decoder, made[::-1], sampling)
    found.append([one.walk.parts for one in made])
    assert found[0] == found[1] == found[2] == found[3]


def test_the_prompt_matters_and_guidance_makes_it_matter_more(new_decoder, new_batch, vocabulary):
    decoder, found = sharp(new_decoder(CONFIGS["dense"]), new_batch), {}
    kinds = {0: {"guidance": 0.0}, 1: {}, 4: {"guidance": 4.0}, "contrast": {"contrast": 3}}
    for kind, options in kinds.items():
        sampling = Sampling(**options)
        made = [row(vocabulary, "image", n, 8, guided=sampling.guided) for n in range(2)]
        made[1].draws = np.random.default_rng((0, 0))
        sample(decoder, made, sampling)
        found[kind] = [one.walk.parts[0].ids for one in made]
    assert found[0][0] == found[0][1], "with no guidance at all the prompt is not seen"
    assert found[1][0] != found[1][1]
    assert len({tuple(found[kind][0]) for kind in (1, 4, "contrast")}) == 3


def test_contrast_is_a_ratio_among_the_likely():
    given = torch.tensor([[0.5, 0.3, 0.16, 0.04], [0.9, 0.06, 0.03, 0.01]])
    free = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.1, 0.1, 0.4, 0.4]])
    for top_k, kept in ((1, ([0, 1, 2], [0])), (2, ([0, 1, 2, 3], [0, 1, 2, 3]))):
        score = contrast(given.log(), free.log(), top_k)
        for b in range(2):
            likely = [a for a in range(4) if score[b, a] > -torch.inf]
            assert likely == kept[b]
            ratio = given[b, likely] / free[b, likely]
            torch.testing.assert_close(score[b, likely], ratio.log())


def test_tokens_are_counted(new_decoder, new_batch, vocabulary):
    decoder = sharp(new_decoder(CONFIGS["mamba_dt"]), new_batch)
    made = [row(vocabulary, "image", 0, 5) for _ in range(3)]
    speed = sample(decoder, made, Sampling())
    assert (speed.prefill_tokens, speed.sampled_tokens) == (7, 3 * 6)
    assert speed.prefill_tokens_per_s > 0 < speed.sampled_tokens_per_s


LOGITS = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()[None]
GRID = np.linspace(0, 1, 1000, endpoint=False)


@pytest.mark.parametrize(
    "options, wanted",
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.4}, [0, 1, 0, 0]),
        ({"top_p": 0.41}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 0.5, "top_k": 3}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"temperature": 1e-40}, [0, 1, 0, 0]),
    ],
)
def test_draws_fall_as_the_probabilities_say(options, wanted):
    places = pick(LOGITS.expand(1000, -1), GRID.tolist(), Sampling(**options))
    share = [Counter(places)[n] / 1000 for n in range(4)]
    np.testing.assert_allclose(share, wanted, atol=0.002)


def test_the_last_draw_is_within_the_ids():
    logits_BA = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    logits_BA[:, -20:] = -torch.inf
    assert max(pick(logits_BA, [1 - 2**-53] * 50, Sampling())) < 280


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -1.0}, "--temperature -1.0: it should be 0 or more"),
        ({"temperature": float("nan")}, "--temperature nan"),
        ({"top_p": 0.0}, "--top-p 0.0: it should be above 0, and 1 at most"),
        ({"top_p": 1.5}, "--top-p 1.5"),
        ({"top_k": -1}, "--top-k -1"),
        ({"guidance": -2.0}, "--guidance -2.0"),
        ({"seed": -1}, "--seed -1"),
        ({"contrast": -1}, "--contrast -1"),
        ({"contrast": 2, "guidance": 2.0}, "--contrast and --guidance"),
    ],
)
def test_values_out_of_range_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)
