"""All quantizers through their one interface, and what the remedies of VQ are good for."""

import pytest
import torch

from plait.tokenizers import residual
from plait.tokenizers.errors import ConfigError
from plait.tokenizers.quantize import CodeUse
from plait.tokenizers.quantize_scalar import Binary, FiniteScalar

pytest.importorskip("vector_quantize_pytorch")

from plait.tokenizers.quantize_vq import ResidualQuantizer, SimVQ, VectorQuantizer

MAKE = {
    "vq": lambda: VectorQuantizer(32, 6, batch=256),
    "plain vq": lambda: VectorQuantizer(32, 6, batch=256, remedies=False),
    "simvq": lambda: SimVQ(32, 6),
    "rvq": lambda: ResidualQuantizer(32, 6, 3, batch=256),
    "fsq": lambda: FiniteScalar((4, 3, 2)),
    "lfq": lambda: Binary(32, spherical=False),
    "bsq": lambda: Binary(32, spherical=True),
}


def vectors(width, count=600, seed=0):
    """Vectors around 40 centres, most of them around few."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, width, generator=generator)
    share = 1 / torch.arange(1, 41).float()
    which = torch.multinomial(share, count, replacement=True, generator=generator)
    return centres[which] + 0.1 * torch.randn(count, width, generator=generator)


@pytest.fixture(params=MAKE)
def quantizer(request):
    torch.manual_seed(0)
    made = MAKE[request.param]()
    made.start(vectors(made.width), 0)
    return made


def test_ids_are_the_nearest_codes_level_by_level(quantizer):
    """The package's own ids are those that a tokenizer computes from the codebooks alone."""
    z_ND = vectors(quantizer.width, seed=1)
    done = quantizer.eval()(z_ND)
    codebooks_CKD = quantizer.codebooks()
    assert torch.equal(done.ids_NC, residual.encode(z_ND.double(), codebooks_CKD.double()))
    torch.testing.assert_close(
        done.vectors_ND, residual.decode(done.ids_NC, codebooks_CKD), rtol=1e-5, atol=1e-5
    )
    assert done.loss.shape == () and torch.isfinite(done.loss)


def test_codes_of_their_own_vectors(quantizer):
    first_KD = quantizer.codebooks()[:1]
    distinct = len(first_KD[0].unique(dim=0))
    ids_NC = residual.encode(first_KD[0].double(), first_KD.double())
    assert len(ids_NC.unique()) == distinct


def test_gradients_reach_the_encoder(quantizer):
    z_ND = vectors(quantizer.width, seed=2).requires_grad_()
    done = quantizer.train()(z_ND)
    (done.vectors_ND.square().mean() + done.loss).backward()
    assert z_ND.grad is not None and torch.isfinite(z_ND.grad).all()
    assert (z_ND.grad != 0).any(1).float().mean() > 0.5


@pytest.mark.parametrize("name", ["vq", "simvq", "rvq"])
def test_a_start_by_k_means_fits_at_once(name):
    torch.manual_seed(0)
    started, blind = MAKE[name](), MAKE[name]()
    z_ND = vectors(6)
    started.start(z_ND, 0)
    errors = [
        (residual.decode(residual.encode(z_ND, c), c) - z_ND).square().mean()
        for c in (started.codebooks(), blind.codebooks())
    ]
    assert errors[0] < 0.2 * errors[1]


def test_quantizer_dropout_leaves_out_last_levels():
    torch.manual_seed(0)
    quantizer = MAKE["rvq"]()
    z_ND = vectors(6)
    quantizer.start(z_ND, 0)
    left_out = {int((quantizer(z_ND).ids_NC[0] < 0).sum()) for _ in range(20)}
    assert left_out == {0, 1, 2}
    assert (quantizer.eval()(z_ND).ids_NC >= 0).all()


def trained_use(remedies: bool) -> CodeUse:
    """A linear autoencoder around VQ of 512 codes, trained on 64 values with few directions."""
    torch.manual_seed(0)
    data = vectors(8, 4000, seed=3) @ torch.randn(8, 64)
    data = data / data.std()
    encoder, decoder = torch.nn.Linear(64, 16), torch.nn.Linear(16, 64)
    quantizer = VectorQuantizer(512, 16, batch=256, remedies=remedies)
    with torch.no_grad():
        quantizer.start(encoder(data), 0)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for step in range(200):
        x_ND = data[(torch.arange(256) + 256 * step) % 4000]
        done = quantizer(encoder(x_ND))
        loss = (decoder(done.vectors_ND) - x_ND).square().mean() + done.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        ids_NC = residual.encode(encoder(data).double(), quantizer.codebooks().double())
    return CodeUse.of(ids_NC, 512)


def test_vq_collapses_without_its_remedies():
    """The negative control: under 10 % of the codes without them, most with them."""
    plain, cured = trained_use(remedies=False), trained_use(remedies=True)
    assert plain.codes_used < 0.1 * 512
    assert cured.codes_used > 0.8 * 512
    assert cured.perplexity > 4 * plain.perplexity


@pytest.mark.parametrize("codes", [1, 3, 1000])
def test_binary_codes_are_a_power_of_two(codes):
    with pytest.raises(ConfigError, match="power of two"):
        Binary(codes, spherical=False)
