"""launch/evaluate.py and launch/generate.py, on a tiny model."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from commands import refused, run
from eval_cases import TOKENS, WORDS

from configs import common
from longjax import checkpoint, evals, llama
from longjax.batch import one_document
from longjax.data import tokenizer
from longjax.errors import InputError
from longjax.evals import ruler, sections, tasks, word_lists
from longjax.inference import generate, memory

CONFIG = '--config=configs/tiny.py'
MODEL = common.SIZES['tiny']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Two run directories with random weights: before, after."""
  made = []
  for seed, name in enumerate(('before', 'after')):
    config = llama.Llama(
      **MODEL, rope=llama.rope.Rope(base=5e5), dtype='float32'
    )
    workdir = tmp_path_factory.mktemp(name)
    params = llama.init(config, jax.random.key(seed))
    saved = checkpoint.Checkpoints(workdir / 'checkpoints', 1)
    saved.save(
      dict(params=params, step=jax.numpy.int32(7)),
      dict(model=dataclasses.asdict(config)),
    )
    saved.close()
    tokenizer.load('bytes').save(workdir / 'tokenizer')
    made.append(workdir)
  return made


SMALL = ('--config.mesh.data=1', '--config.mesh.seq=2',
         '--config.model.block=128')  # fmt: skip


def evaluated(trained, out, tasks, lengths, *flags, length=256):
  """results.json and REPORT.md of the command."""
  before, after = trained
  done = run(
    'evaluate.py', CONFIG, f'--checkpoint={before}', f'--against={after}',
    f'--tasks={tasks}', f'--lengths={lengths}', *flags,
    '--config.eval.samples=2', f'--config.eval.length={length}', *SMALL,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  content = json.loads((out / 'results.json').read_text())
  assert list(content['results']) == [before.name, after.name]
  return content, (out / 'REPORT.md').read_text()


def test_two_checkpoints_side_by_side(trained):
  """In a report beside the first, by its step."""
  content, text = evaluated(
    trained, trained[0] / 'evals/7', 'position_loss,passkey_original', '300'
  )
  for found in content['results'].values():
    (score,) = found['passkey_original']['passkey_original']
    assert score['samples'] == 2 and score['tokens'] <= 300
  assert content['checkpoints'][trained[0].name]['step'] == 7
  for heading in ('Loss by position', 'The original passkey prompt',
                  'What was not measured', 'Again'):  # fmt: skip
    assert f'## {heading}' in text, heading
  assert 'not run: perplexity, context_gain, longppl, passkey, needle' in text


@pytest.mark.slow
def test_all_evaluations_that_need_no_package(trained, tmp_path):
  content, text = evaluated(
    trained, tmp_path, 'position_loss,perplexity,context_gain,longppl,passkey,'
    'needle,passkey_original,first_sentence', '1024,2048', f'--out={tmp_path}',
    length=1024,
  )  # fmt: skip
  for found in content['results'].values():
    assert found['perplexity']['length'] == [1024]
    assert [len(x) for x in found['passkey']['found']] == [3, 3]
  for heading in ('Perplexity over windows', 'LongPPL', 'Needle in a haystack',
                  'What more context is worth'):  # fmt: skip
    assert f'## {heading}' in text, heading
  for name in ('loss_by_position', 'needle', 'power_law'):
    assert (tmp_path / 'plots' / f'{name}.png').stat().st_size > 5000


def test_the_command_continues_a_file_and_a_prompt(trained, tmp_path):
  file = tmp_path / 'text.txt'
  file.write_text('def main():\n')
  done = run(
    'generate.py', CONFIG, f'--checkpoint={trained[0]}', f'--file={file}',
    '--prompt=  x', '--tokens=5', '--temperature=1', '--top-p=0.9', *SMALL,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('def main():\n  x')
  assert len(done.stdout.rstrip('\n')) > len('def main():\n  x')


def test_what_cannot_be_evaluated_is_refused_in_one_line():
  flags = '--checkpoint=nowhere', '--lengths=4K;8K'
  assert '4096,8192 or 4K,8K' in refused('evaluate.py', CONFIG, *flags)
  says = refused('generate.py', CONFIG, '--checkpoint=x', '--chat=smol')
  assert "chat template 'smol' is none of" in says


def test_a_chat_whose_tokens_are_missing_is_refused_before_it_is_loaded(
  trained,
):
  flags = f'--checkpoint={trained[0]}', '--chat=llama3', '--prompt=x', *SMALL
  says = refused('generate.py', CONFIG, *flags)
  assert 'needs the token <|begin_of_text|>' in says


@pytest.mark.parametrize('name, near', [
  ('rular', 'ruler'), ('ruler/vr', 'ruler/vt'), ('needle/vt', 'needle'),
  ('lm_eval', 'lm_eval'),
])  # fmt: skip
def test_a_task_that_is_none_is_named_with_its_nearest(name, near):
  with pytest.raises(InputError, match=f"nearest is '{near}"):
    tasks.check(name)
  tasks.check('helmet/icl')
  tasks.check('lm_eval/arc_easy')


def by_length(score):
  return [dict(length=4096, tokens=4090, score=score, low=score / 2,
               high=1.0, samples=20)]  # fmt: skip


def test_sections_show_scores_intervals_and_effective_lengths(tmp_path):
  stages = {
    'old': {'ruler': {t: by_length(0.5) for t in ruler.TASKS}},
    'new': {'ruler': {t: by_length(0.9) for t in ruler.TASKS}},
  }
  (text,) = sections.write(stages, common.base().eval, tmp_path)
  assert '| vt | 4,096 | 50.0 (25-100, 20) | 90.0 (45-100, 20) |' in text
  assert '| old | 4,096: 50.0 | 0 | 0 | 50.0 | 50.0 |' in text
  assert '| new | 4,096: 90.0 | 4,096 | 4,096 | 90.0 | 90.0 |' in text
  assert (tmp_path / 'plots' / 'ruler.png').exists()
  part = {'one': {'ruler/vt': {'vt': by_length(0.5)}}}
  assert 'ruler: not all of its tasks' in sections.not_measured(part)


def test_a_model_with_memory_reads_in_windows(rng, make_mesh):
  """Losses of memory.nll; answers of at most so many tokens."""
  config, tokens = common.base(), tokenizer.load('bytes')
  config.train.seq_len = 64
  model = llama.Llama(**MODEL, dtype='float32', memory=dict(layers=(1,)))
  params = llama.init(model, jax.random.key(0))
  lm = evals.language_model(params, model, make_mesh(1, 1), config, tokens)
  batch = one_document(rng.integers(0, 256, 150))
  wanted = memory.nll(params, model, batch, window=64)
  np.testing.assert_allclose(lm.nll(batch), wanted, atol=1e-5)
  prompts = [rng.integers(0, 256, 100)]
  assert len(lm.generate(prompts, 5)[0]) <= 5
  with pytest.raises(InputError, match='takes the likeliest token'):
    lm.generate(prompts, 5, sampling=generate.Sampling(1.0))


@pytest.mark.parametrize('name, lengths, says', [
  ('ruler/cwe', (200,), 'a prompt needs at least'),
  ('passkey_original', (4096, 100), 'a prompt needs at least'),
  ('perplexity', (4096,), 'from 2 to eval.length 1024'),
  ('first_sentence', (4096,), 'no sentence of 8 to 40 words'),
])  # fmt: skip
def test_lengths_that_cannot_be_are_refused_before_anything_runs(
  name, lengths, says, monkeypatch
):
  monkeypatch.setattr(word_lists, 'load', lambda log: WORDS)
  monkeypatch.setattr(tasks, 'text', lambda setting: 'x = 1\n' * 90)
  ask = common.base().eval
  ask.update(length=1024, lengths=lengths)
  setting = tasks.Setting(None, TOKENS, 'documents', ask, 0, print)
  with pytest.raises(InputError, match=says):
    tasks.check_room(setting, name)
