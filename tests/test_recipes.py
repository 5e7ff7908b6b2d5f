"""Each constant of a paper, typed from the paper and not from the config."""

import json
import math
import pathlib
import re

import numpy as np
import pytest
from test_configs import config_of, module
from test_data_pack import Memory

from configs import llama3_8b_512k
from longjax import checks, flops, rope
from longjax.data import mixture, pack, pipeline, row_plans
from longjax.rope import Rope
from longjax.train import optimizer

K, M = 2**10, 2**20
CONSTANT = dict(schedule='constant')
ADAM = dict(b1=0.9, b2=0.95)
LLAMA2_LONG = ADAM | dict(
  base=5e5, schedule='cosine', warmup_steps=2000, steps=100_000,
  batch_tokens=4 * M, weight_decay=0.1, eps=1e-5, clip=1.0,
)  # fmt: skip
SMALL = dict(seq_len=32 * K, learning_rate=2e-5)
LARGE = dict(seq_len=16 * K, learning_rate=1e-5)
PROLONG = ADAM | dict(
  schedule='cosine',
  min_ratio=0.1,
  weight_decay=0.1,
  clip=1.0,
  decayed='with_norms',
)
PI = ADAM | CONSTANT | dict(
  scaling='linear', weight_decay=0.0, warmup_steps=20, warmup_from=0.1,
  steps=1000,
)  # fmt: skip
YARN = ADAM | dict(
  scaling='yarn', seq_len=64 * K, batch=64, learning_rate=2e-5,
  weight_decay=0.0, warmup_steps=20, original_length=4096,
  schedule='linear', min_ratio=0,
)  # fmt: skip
FOT = CONSTANT | dict(
  learning_rate=2e-5, weight_decay=0.01, batch_tokens=256 * K, seq_len=2048
)
LONGALIGN = ADAM | dict(
  base=2e6, seq_len=64 * K, schedule='cosine', learning_rate=2e-5,
  weight_decay=0.0,
)  # fmt: skip
ULTRALONG = dict(
  base=5e5, scaling='yarn', original_length=8192, beta_fast=4, beta_slow=1
)
SUPERHOT = dict(
  scaling='linear', factor=4, seq_len=8 * K, steps=3 * 1200 // 16, alpha=8,
  weights=('q', 'k', 'v', 'o'), whole=(), learning_rate=3e-4, b1=0.9, b2=0.99,
  eps=1e-5, weight_decay=0.1,
)  # fmt: skip
SMOLLM3 = ADAM | dict(
  learning_rate=2e-5, schedule='cosine', min_ratio=0, warmup_steps=1000,
  weight_decay=0.1, eps=1e-8, clip=1, decayed='not_embedding',
)  # fmt: skip
# Its fine-tune.py.
LONGLORA = dict(
  rank=8, alpha=16, weights=('q', 'k', 'v', 'o'), whole=('embedding', 'norm')
)

# Config, variant, constants. Sections are cited in the configs.
TABLE = [
  # arXiv:2309.16039
  ('llama2_7b_32k', '', LLAMA2_LONG | SMALL),
  ('llama2_7b_32k', '13b', LLAMA2_LONG | SMALL),
  ('llama2_7b_32k', '34b', LLAMA2_LONG | LARGE),
  ('llama2_7b_32k', '70b', LLAMA2_LONG | LARGE),
  ('llama2_7b_32k', '70b_instruct', dict(seq_len=16 * K, base=5e5)),
  ('llama2_long_ablations', 'rope', dict(
    base=1e4, scaling='none', steps=20_000)),
  ('llama2_long_ablations', 'pi', dict(base=1e4, scaling='linear', factor=8)),
  ('llama2_long_ablations', 'abf', LLAMA2_LONG | dict(steps=20_000)),
  ('llama2_long_ablations', 'xpos_abf', dict(base=5e5, scaling='none')),
  ('llama2_long_ablations', '4k_32k_40', dict(steps=100_000, seq_len=32 * K)),
  # arXiv:2410.02660
  ('llama3_8b_64k', '', PROLONG | dict(
    base=8e6, seq_len=64 * K, batch=64, batch_tokens=4 * M, steps=5000,
    learning_rate=1e-5, warmup_steps=500)),
  ('llama3_8b_64k', 'base_05m', dict(base=5e5, steps=1250)),
  ('llama3_8b_64k', 'base_4m', dict(base=4e6)),
  ('llama3_8b_512k', '', PROLONG | dict(
    base=1.28e8, seq_len=512 * K, batch=16, batch_tokens=8 * M, steps=2500,
    learning_rate=1e-5, warmup_steps=250)),
  ('llama3_8b_512k', 'base_64m', dict(
    base=6.4e7, steps=625, warmup_steps=63)),  # 5B tokens
  ('llama3_8b_512k', 'base_256m', dict(base=2.56e8, seq_len=512 * K)),
  ('llama3_8b_512k', 'more_512k', dict(
    base=1.28e8, steps=500, batch_tokens=8 * M, seq_len=512 * K)),  # 4B tokens
  ('llama3_8b_512k', 'more_64k', dict(
    base=8e6, steps=1000, batch_tokens=4 * M, seq_len=64 * K)),
  ('llama3_8b_512k_sft', '', PROLONG | dict(
    base=1.28e8, seq_len=64 * K, batch_tokens=4 * M, steps=250,
    learning_rate=2e-5, warmup_steps=13)),
  # arXiv:2306.15595
  ('llama_pi', 'llama1_7b_8k', PI | dict(
    factor=4, seq_len=8 * K, batch=64, learning_rate=2e-5)),
  ('llama_pi', 'llama1_33b_8k', PI | dict(batch=64, learning_rate=1e-5)),
  ('llama_pi', 'llama1_7b_16k', PI | dict(factor=8, seq_len=16 * K, batch=128)),
  ('llama_pi', 'llama1_65b_8k', PI | dict(batch=128, learning_rate=1e-5)),
  ('llama_pi', 'llama1_13b_32k', PI | dict(
    factor=16, seq_len=32 * K, batch=128, learning_rate=2e-5)),
  ('llama_pi', 'llama2_7b_32k', PI | dict(factor=8)),
  ('llama_pi', 'ntk_llama2_7b_32k', PI | dict(scaling='ntk', factor=8)),
  # Model cards of superhot-30b-8k and superhot-13b-8k: 3 epochs of 1,200.
  ('llama_superhot_8k', '30b', SUPERHOT | dict(rank=4)),
  ('llama_superhot_8k', '13b', SUPERHOT | dict(rank=2)),
  # arXiv:2309.00071
  ('llama2_yarn', '7b_64k', YARN | dict(factor=16, steps=400)),
  ('llama2_yarn', '13b_128k', YARN | dict(
    factor=32, steps=200, beta_fast=32, beta_slow=1)),
  ('llama2_yarn', '70b_32k', YARN | CONSTANT | dict(
    factor=8, steps=400, seq_len=8 * K, learning_rate=1e-5)),
  ('llama31_8b_128k', '', dict(
    base=5e5, scaling='llama3', factor=8, original_length=8192,
    low_freq_factor=1, high_freq_factor=4, seq_len=128 * K)),
  # arXiv:2305.19466
  ('nope_107m', '', dict(
    scaling='nope', learning_rate=3e-5, weight_decay=0.05, batch=64,
    steps=40_000, warmup_steps=2400, seq_len=1024)),
  # arXiv:2309.10400
  ('llama_pose', 'linear_16k', dict(
    scaling='linear', factor=8, seq_len=2048, batch=64, steps=1000,
    learning_rate=2e-5, schedule='linear', warmup_steps=10, b2=0.999,
    kind='pose', target=16 * K, chunks=2)),
  ('llama_pose', 'yarn_128k', dict(
    scaling='yarn_revised', factor=64, original_length=2048)),
  # arXiv:2405.03939: only that positions skip is known
  ('llama3_8b_skipalign', '', dict(kind='skipalign', target=64 * K)),
  # arXiv:2401.06951
  ('llama2_e2llm', '7b', ADAM | dict(
    factor=20, seq_len=4096, batch=16, steps=30_000, learning_rate=1e-5)),
  # arXiv:2307.03170
  ('openllama_3b_fot', '', FOT),
  ('openllama_3b_fot', '7b', FOT),
  # arXiv:2401.18058
  ('llama2_longalign', '7b_pretrain', LONGALIGN),
  ('llama2_longalign', '7b_packing', LONGALIGN | dict(
    batch=8, steps=2000, warmup_steps=60)),
  ('llama2_longalign', '13b_sorted', LONGALIGN | dict(batch=96)),
  # arXiv:2410.23771 and its train.sh
  ('llama2_longce', '', CONSTANT | ADAM | dict(
    base=1e4, scaling='linear', factor=8, seq_len=32 * K, steps=200,
    learning_rate=2e-5, schedule='linear', min_ratio=0, warmup_steps=20,
    weight_decay=0.0, longce=dict(gamma=5, short=4 * K, stride=K))),
  # arXiv:2309.12307
  ('llama2_longlora', '13b_64k', CONSTANT | dict(
    scaling='linear', factor=16, steps=1000, batch=64, learning_rate=2e-5,
    warmup_steps=20, weight_decay=0.0, group=16 * K, **LONGLORA)),
  ('llama2_longlora', '70b_32k', CONSTANT | LONGLORA | dict(
    factor=8, learning_rate=1e-5)),
  ('llama2_longlora', '7b_100k', dict(
    factor=25, rank=0, seq_len=100_000, group=25_000)),
  # arXiv:2504.06214
  ('llama31_ultralong', '1m', ULTRALONG | dict(
    factor=128, seq_len=M, batch=2, steps=480)),
  ('llama31_ultralong', '2m', ULTRALONG | dict(
    factor=256, seq_len=2 * M, steps=140)),
  ('llama31_ultralong', '4m', ULTRALONG | dict(
    factor=512, seq_len=4 * M, batch=2, steps=150)),
  # arXiv:2512.13961 and its script of OLMo-core
  ('llama3_8b_olmo3_64k', '', ADAM | dict(
    scaling='yarn', factor=8, original_length=8192, beta_fast=32, beta_slow=1,
    seq_len=64 * K, batch_tokens=4 * M, learning_rate=0.00020712352850360292,
    steps=11_921,  # its last checkpoint
    schedule='linear', warmup_steps=200, min_ratio=0, weight_decay=0.1, clip=1,
    decayed='not_embedding', spike_sigmas=6)),
  # Its note, and huggingface/smollm, long_context_4k_to_32k.yaml and the other.
  ('smollm3_3b_64k', '32k', SMOLLM3 | dict(
    base=1.5e6, seq_len=32 * K, batch=12 * 6, steps=20_000)),
  ('smollm3_3b_64k', '64k', SMOLLM3 | dict(
    base=5e6, seq_len=64 * K, batch=12 * 3, steps=22_000)),
  # arXiv:2406.00605, arXiv:2405.17915
  ('llama2_longskywork', 'sft', dict(steps=200, seq_len=204_800)),
  ('llama2_prospector', '', dict(base=160_000, seq_len=32 * K, batch=128)),
]  # fmt: skip


def constants(config):
  """The numbers of a config, flat, and tokens per step."""
  rope_, train_ = config.model.rope, config.train
  flat = rope_.to_dict() | train_.to_dict() | config.optim.to_dict()
  flat |= config.lora.to_dict() | config.data.positions.to_dict()
  flat['group'] = config.model.group
  return flat | dict(batch_tokens=train_.batch * train_.seq_len)


@pytest.mark.parametrize(
  'name, variant, want', TABLE, ids=[f'{n}:{v}' for n, v, _ in TABLE]
)
def test_a_recipe_has_the_constants_of_its_paper(name, variant, want):
  got = constants(config_of(name, *([variant] if variant else [])))
  assert {key: got[key] for key in want} == want


def table_of_constants():
  """{(config, variants or ''): cells} of configs/README.md."""
  text = (pathlib.Path('configs') / 'README.md').read_text()
  lines = text.partition('### Every constant')[2].partition('\n\nOur own')[0]
  rows = [line.split(' | ') for line in lines.splitlines() if '| `' in line]
  return {tuple(row[0].strip('| `').partition(':')[::2]): row[1:]
          for row in rows}  # fmt: skip


def cell(text):
  """What a cell says, without its sources: the alternatives of ' or '."""
  text = re.sub(r'\(.*?\)|[*|]', ' ', text)
  number = lambda word: word.replace(',', '').replace('.', '').isdigit()
  say = lambda w: float(w.replace(',', '')) if number(w[0]) else w
  return {tuple(map(say, option.split())) for option in text.split(' or ')}


def of_table(config):
  """The cells of a config, as `cell` reads them."""
  o, t = config.optim, config.train
  ends = ('to', o.min_ratio) if o.schedule != 'constant' else ()
  named = () if o.decayed == 'matrices' else (o.decayed,)
  return (
    (t.steps,), (t.batch,), (t.seq_len,), (o.learning_rate,),
    (o.schedule, *ends), (o.warmup_steps,), (o.b1, o.b2, o.eps),
    (o.weight_decay, *named), (o.clip,),
  )  # fmt: skip


OWN = re.compile('common|tiny|qwen3|llama3_70b|llama32|smollm2')


@pytest.mark.parametrize('name', sorted(
  p.stem for p in pathlib.Path('configs').glob('*.py')
  if not OWN.match(p.stem)
))  # fmt: skip
def test_the_table_of_constants_has_those_of_each_variant(name):
  rows = {v: row for (n, v), row in table_of_constants().items() if n == name}
  found = {of: [set() for _ in range(9)] for of in rows}
  for variant in getattr(module(name), 'VARIANTS', ['']):
    of = next((r for r in rows if variant in r.split()), '')
    for cells, value in zip(found[of], of_table(config_of(name, variant))):
      cells.add(value)
  for of, row in rows.items():
    assert found[of] == [cell(text) for text in row], of


def shares(config):
  mix = config.data.mix
  total = sum(part.weight for part in mix.values())
  return {name: part.weight / total for name, part in mix.items()}


def test_prolong_s_first_mix_is_63_percent_long():
  config = config_of('llama3_8b_64k')
  want = dict(
    code=0.30, books=0.30, textbooks=0.03, fineweb_edu=0.10, fineweb=0.10,
    stackexchange=0.04, wikipedia=0.04, tulu=0.03, arxiv=0.03, openwebmath=0.03,
  )  # fmt: skip
  assert shares(config) == pytest.approx(want)
  whole = {n for n, part in config.data.mix.items() if 'pack' in part}
  assert whole == {'code', 'books', 'textbooks'}


def test_prolong_s_second_mix_splits_code_in_half_and_books_at_a_sixth():
  config = config_of('llama3_8b_512k')
  got, mix = shares(config), config.data.mix
  assert got['code'] == pytest.approx(got['code_512k']) == pytest.approx(0.15)
  assert got['books'] == pytest.approx(0.25)
  assert got['books_512k'] == pytest.approx(0.05)
  assert got['textbooks'] == pytest.approx(0.03)
  lengths = {n: part.get('length', 512 * K) for n, part in mix.items()}
  longest = {n for n, length in lengths.items() if length == 512 * K}
  assert longest == {'code_512k', 'books_512k', 'textbooks'}
  assert {lengths[n] for n in mix if n not in longest} == {64 * K}
  assert mix.code.max_length == mix.books.max_length == 512 * K
  assert config.moments


def test_prolong_s_bases_are_about_twice_the_ntk_rule():
  """Appendix B: 4.13e6 of 5e5, 6.61e7 of 8e6, for eight times the window."""
  for before, rule, base in ((5e5, 4.13423e6, 8e6), (8e6, 6.61477e7, 1.28e8)):
    scaled = rope.frequencies(Rope(base=before, scaling='ntk', factor=8.0), 128)
    plain = rope.frequencies(Rope(base=rule), 128)
    np.testing.assert_allclose(scaled[0], plain[0], rtol=1e-5)
    assert 1.9 < base / rule < 2


@pytest.mark.parametrize('variant, share', [
  ('long_0', 0), ('long_60', 0.6), ('base_4m', 0.6), ('long_100', 1),
])  # fmt: skip
def test_prolong_s_ablations_have_their_share_of_long_documents(variant, share):
  config = config_of('llama3_8b_64k', variant)
  got = shares(config)
  long = got.get('code', 0) + got.get('books', 0)
  assert long == pytest.approx(share)
  if 0 < share < 1:
    assert got['code'] == got['books']
    # Table 5: 25 % of the short part each.
    assert got['fineweb'] == pytest.approx(0.25 * (1 - share))


def test_without_masks_no_part_is_masked():
  masked = [
    part.get('masked', True)
    for part in config_of('llama3_8b_64k', 'no_masks').data.mix.values()
  ]
  assert not any(masked)


@pytest.mark.parametrize('variant, paper, done', [
  ('32k', 3.783e22, 2.744e22), ('4k_32k_20', 3.405e22, 2.554e22),
  ('4k_32k_40', 3.026e22, 2.365e22), ('4k_32k_80', 2.270e22, 1.987e22),
])  # fmt: skip
def test_curricula_cost_the_flops_of_llama_2_long_s_table_10(
  variant, paper, done
):
  """By the paper's count, and by that of a Llama: SwiGLU, causal attention."""
  config = config_of('llama2_long_ablations', variant)
  model = checks.llama_config(config)
  tokens = config.train.steps * config.train.batch * config.train.seq_len
  stages = config.data.curriculum or ((1.0, config.train.seq_len),)
  # Narayanan et al., arXiv:2104.04473: a feed-forward of two 4 x embed
  # matrices, attention over all of the row, no vocabulary.
  got = sum(
    72 * s * tokens * 32 * 4096**2 * (1 + n / (6 * 4096)) for s, n in stages
  )
  assert got == pytest.approx(paper, rel=2e-4)
  # All that multiply (the 7B without its look-up and norms), and 32 layers.
  params = 6_738_415_616 - 32_000 * 4096 - 65 * 4096
  by_hand = sum(
    s * tokens * (6 * params + 6 * 32 * 4096 * n) for s, n in stages
  )
  got = sum(
    flops.train_step(model, s * tokens, s * tokens * n) for s, n in stages
  )
  assert got == pytest.approx(by_hand) == pytest.approx(done, rel=2e-4)


def test_longllama_s_rows_and_data_are_its_appendix():
  three, seven = (
    config_of('openllama_3b_fot'),
    config_of('openllama_3b_fot', '7b'),
  )
  assert three.model.memory.layers == (6, 12, 18)
  assert seven.model.memory.layers == (8, 16, 24)
  assert three.model.memory.rows == ((), (-1, -2), (-1, -2, -3), (-1, -2, -3))
  # (positives, negatives): (0,0), (1,2), (2,5), (3,4).
  assert [len(row) for row in seven.model.memory.rows] == [0, 3, 7, 7]
  assert shares(three) == pytest.approx(dict(
    arxiv=0.25, python=0.25, book=0.10, common_crawl=0.29, c4=0.05,
    github=0.02, stackexchange=0.02, wikipedia=0.02,
  ))  # fmt: skip
  assert {n: part.min_length for n, part in three.data.mix.items()} == dict(
    arxiv=0, python=4096, book=0, common_crawl=0, c4=1024, github=2048,
    stackexchange=1024, wikipedia=1024,
  )  # fmt: skip
  for config, tokens in ((three, 10e9), (seven, 3e9)):
    trained = config.train.steps * config.train.batch * config.train.seq_len
    assert trained == pytest.approx(tokens, rel=1e-4)
    assert {part.length for part in config.data.mix.values()} == {8 * K}


def test_e2llm_serves_any_scale_by_the_rope_factor():
  """At scale g the angle of (m + t) / g times 20, divided by 20, is that of
  Position Interpolation by g."""
  config = config_of('llama2_e2llm')
  assert config.data.positions.to_dict() | dict(chunks=2) == dict(
    kind='e2llm', target=20 * 4096, window=4096, chunks=2
  )
  stretched = rope.cos_sin(np.array([[100 * 20 // 4]]), Rope(
    scaling='linear', factor=20.0), 128)  # fmt: skip
  plain = rope.cos_sin(
    np.array([[100]]), Rope(scaling='linear', factor=4.0), 128
  )
  np.testing.assert_allclose(stretched, plain, atol=5e-7)


def test_prolong_s_rate_falls_to_a_tenth_and_pi_s_rises_from_one():
  prolong, pi = config_of('llama3_8b_512k'), config_of('llama_pi')
  rate = optimizer.schedule(prolong.optim, 2500)
  assert [float(rate(s)) for s in (0, 250, 2500)] == pytest.approx(
    [0, 1e-5, 1e-6]
  )
  # Half way down: peak * (0.1 + 0.9 / 2).
  assert float(rate(1375)) == pytest.approx(0.55e-5)
  rate = optimizer.schedule(pi.optim, 1000)
  assert [float(rate(s)) for s in (0, 20, 999)] == pytest.approx(
    [2e-6, 2e-5, 2e-5]
  )


def test_packs_of_the_second_stage_are_rows_or_eighths_of_them():
  for part in llama3_8b_512k.mix().values():
    assert math.gcd(part.get('length', 512 * K), 512 * K) >= 64 * K


GOLDEN = json.loads(
  (pathlib.Path(__file__).parent / 'golden' / 'recipes.json').read_text()
)


@pytest.mark.parametrize('name', GOLDEN['schedules'])
def test_the_rate_of_each_step_is_that_of_the_original(name):
  config = config_of('tiny' if name == 'wsd' else name)
  if name == 'wsd':  # transformers' own
    config.train.steps = 200
    config.optim.update(
      schedule='wsd', learning_rate=2e-4, warmup_steps=10, decay_steps=40,
      min_ratio=0.0,
    )  # fmt: skip
  rate = optimizer.schedule(config.optim, config.train.steps)
  for step, want in GOLDEN['schedules'][name]:
    # The step is a float32: late in a run its share is off by 1e-7 of it.
    assert float(rate(step)) == pytest.approx(want, rel=1e-5, abs=1e-12), step


def test_a_published_recipe_skips_no_step_for_a_spike():
  for name, variant, constants in TABLE:
    sigmas = constants.get('spike_sigmas', 0)  # OLMo does
    assert config_of(name, variant).optim.spike_sigmas == sigmas, name


@pytest.mark.parametrize('scale', GOLDEN['yarn']['by_scale'])
def test_yarn_rotates_as_its_code_does(scale):
  config = config_of('llama2_yarn', {'16': '7b_64k', '32': '7b_128k'}[scale])
  recipe = checks.llama_config(config).rope
  want, factor = GOLDEN['yarn']['by_scale'][scale]
  frequency, temperature = rope.frequencies(recipe, GOLDEN['yarn']['dim'])
  np.testing.assert_allclose(frequency, want, rtol=2e-6)  # theirs are float32
  assert temperature == pytest.approx(factor)


def test_yarn_on_mistral_rotates_as_its_code_does():
  """Of modeling_mistral_yarn.py, whose ramp and temperature are its own."""
  config = config_of('mistral_7b_128k', '128k')
  recipe = checks.llama_config(config).rope
  frequency, temperature = rope.frequencies(recipe, 128)
  want = [
    0.023717084899544716, 0.0075010578148067, 0.0013178015360608697,
    8.334509038832039e-05, 4.6868386561982334e-05,
  ]  # fmt: skip
  pairs = [24, 30, 38, 46, 50]
  np.testing.assert_allclose(frequency[pairs], want, rtol=2e-6)
  assert temperature == pytest.approx(1.1940812105567846)


@pytest.mark.parametrize('scaling', GOLDEN['pose_rope'])
def test_pose_rotates_as_its_code_does(scaling):
  config = config_of('llama_pose', f'{scaling}_16k')
  want, factor = GOLDEN['pose_rope'][scaling]
  recipe = checks.llama_config(config).rope
  frequency, temperature = rope.frequencies(recipe, 128)
  np.testing.assert_allclose(frequency, want, rtol=2e-6)  # theirs are float32
  assert temperature == pytest.approx(factor)


def test_longalign_s_packs_and_weights_are_those_of_its_code():
  """Which keeps a place of each pack free, and drops the last one."""
  golden, component = GOLDEN['longalign_packs'], config_of('llama2_longalign')
  component = mixture.parse(component)['all']._replace(length=golden['row'] - 1)
  lengths = np.array(golden['lengths'])
  packs = pack.packs(component, lengths, np.arange(len(lengths)), None)
  found = [[span.length for span in packs[i]] for i in range(len(packs))]
  assert found[:-1] == [np.diff(ends).tolist() for ends in golden['ends']]
  for pack_, total in zip(found, golden['weights']):
    segments = np.repeat(np.arange(len(pack_)), pack_)
    weights = np.concatenate([np.arange(n) >= n // 2 for n in pack_])
    got = pipeline._mean_weights(weights.astype(np.float32), segments)
    assert got.sum() == pytest.approx(total, abs=1e-3)


def test_longalign_s_groups_are_those_of_its_code():
  component = mixture.parse(config_of('llama2_longalign', '7b_sorted'))['all']
  lengths = np.array(GOLDEN['longalign']['lengths'])
  packs = pack.packs(component, lengths, np.arange(len(lengths)), None)
  found = [packs[i][0].length for i in range(len(packs))]
  groups = np.reshape(found, (-1, component.group)).tolist()
  assert sorted(groups) == GOLDEN['longalign']['groups']


@pytest.mark.parametrize('name', ['llama2_yarn', 'llama2_longlora'])
def test_documents_are_joined_without_masks_as_in_the_original(name):
  """yarn's tokenization.py, LongLoRA's fine-tune.py: one segment, in which
  the first token of a document is predicted from the end of the one before."""
  component = mixture.parse(config_of(name))['all']._replace(length=8)
  data = Memory([1, 11, 12, 2], [1, 21, 22, 23, 24, 2])
  packs = pack.packs(component, data.lengths, np.arange(2), None)
  (plan,) = row_plans.of_packs([packs[0]], 8, 8, joined=not component.masked)
  row = row_plans.read_row(data, plan, 8)
  assert row.tokens.tolist() == [1, 11, 12, 2, 1, 21, 22, 23]
  assert row.targets.tolist() == [11, 12, 2, 1, 21, 22, 23, 24]
  assert row.weights.tolist() == [1] * 8 and set(row.segments) == {1}
  assert row.positions.tolist() == list(range(8))
