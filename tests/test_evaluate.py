"""launch/evaluate.py and launch/generate.py, on a tiny model."""

import dataclasses
import json
import math
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import reference
from commands import ROOT, run
from eval_cases import TOKENS, WORDS
from test_data_pack import Memory

from configs import common, tiny
from launch import evaluate
from launch import generate as continue_
from longjax import checkpoint, evals, llama
from longjax.data import tokenizer
from longjax.errors import InputError
from longjax.evals import comparison, position_loss, ruler, table, word_lists
from longjax.inference import generate, language_model, memory
from longjax.inference.language_model import LM
from longjax.parallel import sharding

MODEL = common.SIZES['tiny'] | dict(layers=2)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Two run directories with random weights: before, after."""
  made = []
  for seed, name in enumerate(('before', 'after')):
    config = llama.Llama(
      **MODEL, rope=llama.rope.Rope(base=5e5), dtype='float32'
    )
    workdir = tmp_path_factory.mktemp(name)
    params = reference.random_params(llama.abstract(config), seed)
    params = jax.device_put(params)
    saved = checkpoint.Checkpoints(workdir / 'checkpoints', 1)
    saved.save(
      dict(params=params, step=jax.numpy.int32(7)),
      dict(model=dataclasses.asdict(config)),
    )
    saved.close()
    tokenizer.load('bytes').save(workdir / 'tokenizer')
    made.append(workdir)
  return made


@pytest.fixture
def config(monkeypatch, make_mesh):
  """Of a small evaluation, on two of the tests' eight devices."""
  monkeypatch.setattr(sharding, 'start', lambda devices: None)
  monkeypatch.setattr(sharding, 'make_mesh', make_mesh)
  config = tiny.get_config()
  config.mesh.update(data=1, seq=2)
  config.model.block = 128
  config.eval.update(samples=2, length=256)
  return config


def reports(directory, names):
  """results.json and REPORT.md of an evaluation of models of these names."""
  content = json.loads((directory / 'results.json').read_text())
  assert list(content['results']) == names
  return content, (directory / 'REPORT.md').read_text()


def test_two_checkpoints_side_by_side(trained, config, capsys, monkeypatch):
  """In a report beside the first, by its step."""
  (before, after), drawn = trained, set()  # to draw takes half of its time
  draws = lambda path, *_: drawn.add(path.name)
  monkeypatch.setattr(comparison.figures, 'lines', draws)
  tasks = 'position_loss,passkey_original'
  assert evaluate.main(config, str(before), str(after), tasks, '300') == 0
  names = [before.name, after.name]
  assert drawn == {'position_loss.png', 'passkey_original.png'}
  content, text = reports(before / 'evals/7', names)
  for found in content['results'].values():
    (score,) = found['passkey_original']['passkey_original']
    assert score['samples'] == 2 and score['tokens'] <= 300
  assert content['checkpoints'][before.name]['step'] == 7
  for heading in ('Loss by position', 'The original passkey prompt',
                  'What was not measured', 'Reproduce'):  # fmt: skip
    assert f'## {heading}' in text, heading
  assert (
    'not run: source_loss, perplexity, context_gain, longppl, passkey' in text
  )
  printed = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert ['score', *names] in printed
  losses = [r['position_loss']['loss'][-1] for r in content['results'].values()]
  assert ['position_loss/256', *(f'{x:.3f}' for x in losses)] in printed


@pytest.mark.slow
def test_all_evaluations_that_need_no_package(trained, tmp_path):
  """By the command itself."""
  before, after = trained
  done = run(
    'evaluate.py', '--config=configs/tiny.py', f'--checkpoint={before}',
    f'--against={after}', '--lengths=1024,2048', '--config.eval.length=1024',
    '--tasks=position_loss,perplexity,context_gain,longppl,passkey,needle,'
    'passkey_original,first_sentence', f'--out={tmp_path}',
    '--config.eval.samples=2', '--config.mesh.data=1', '--config.mesh.seq=2',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  content, text = reports(tmp_path, [before.name, after.name])
  for found in content['results'].values():
    assert found['perplexity']['length'] == [1024]
    assert [len(x) for x in found['passkey']['found']] == [3, 3]
  for heading in ('Perplexity over windows', 'LongPPL', 'Needle in a haystack',
                  'What more context is worth'):  # fmt: skip
    assert f'## {heading}' in text, heading
  for name in ('position_loss', 'needle', 'context_gain'):
    assert (tmp_path / 'plots' / f'{name}.png').stat().st_size > 5000
    assert (tmp_path / 'plots' / f'{name}.svg').read_text().endswith('</svg>\n')


@pytest.mark.slow
def test_an_evaluation_that_was_killed_goes_on(trained, tmp_path):
  """The same scores, and what was kept is not asked again."""
  command = [
    sys.executable, 'launch/evaluate.py', '--config=configs/tiny.py',
    f'--checkpoint={trained[0]}', '--tasks=passkey_original', '--lengths=600',
    '--config.eval.samples=40', '--config.mesh.data=1', '--config.mesh.seq=1',
  ]  # fmt: skip
  file = tmp_path / 'a/unfinished.jsonl'
  process = subprocess.Popen([*command, f'--out={file.parent}'], cwd=ROOT)
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline:
    if file.exists() and file.read_text().count('\n') > 2:
      break
    time.sleep(0.02)
  process.kill()
  process.wait()
  assert 2 < file.read_text().count('\n') < 40
  results = []
  for out in (file.parent, tmp_path / 'b'):
    subprocess.run([*command, f'--out={out}'], cwd=ROOT, check=True)
    results.append(json.loads((out / 'results.json').read_text())['results'])
    assert not (out / file.name).exists()
  assert results[0] == results[1]


def test_the_command_continues_a_file_and_a_prompt(
  trained, config, tmp_path, capsys
):
  file = tmp_path / 'text.txt'
  file.write_text('def main():\n')
  asked = dict(tokens='5', temperature='1', top_p='0.9')
  continue_.main(config, str(trained[0]), '  x', str(file), **asked)
  text = capsys.readouterr().out
  assert text.startswith('def main():\n  x')
  assert len(text.rstrip('\n')) > len('def main():\n  x')


def test_what_cannot_be_evaluated_or_continued_is_refused(trained, config):
  for lengths, says in (('4K;8K', 'takes whole num'), ('4K,0', 'at least 1')):
    with pytest.raises(InputError, match=f'lengths .*{says}'):
      evaluate.main(config, 'nowhere', lengths=lengths)
  with pytest.raises(InputError, match=r'--top-p 0.5 .*--temperature'):
    continue_.main(config, 'x', 'x', top_p='0.5')
  with pytest.raises(InputError, match="chat template 'smol'"):
    continue_.main(config, 'x', chat='smol')
  with pytest.raises(InputError, match=r'the token <\|begin_of_text\|>'):
    continue_.main(config, str(trained[0]), 'x', chat='llama3')


def test_several_processes_share_no_terminal(trained, config, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(InputError, match='2 processes; use --prompt'):
    continue_.main(config, str(trained[0]), chat='tokenizer')


@pytest.mark.parametrize('name, near', [
  ('rular', 'ruler'), ('ruler/vr', 'ruler/vt'), ('needle/vt', 'needle'),
  ('lm_eval', 'lm_eval'),
])  # fmt: skip
def test_a_task_that_is_none_is_named_with_its_nearest(name, near):
  with pytest.raises(InputError, match=f"nearest is '{near}"):
    table.find(name)
  assert table.find('helmet/icl')[1] == 'icl'
  assert table.find('lm_eval/arc_easy')[1] == 'arc_easy'


def by_length(score):
  return [dict(length=4096, tokens=4090, score=score, low=score / 2,
               high=1.0, samples=20)]  # fmt: skip


def test_sections_show_scores_intervals_and_effective_lengths(tmp_path):
  stages = {
    'old': {'ruler': {t: by_length(0.5) for t in ruler.TASKS}},
    'new': {'ruler': {t: by_length(0.9) for t in ruler.TASKS}},
  }
  (text,) = comparison.sections(stages, common.base().eval, tmp_path)
  assert '| qa_1 (stand-in) | 4,096 |' in text
  assert '| vt | 4,096 | 50.0 (25-100) | 90.0 (45-100) | +40.0 |' in text
  assert '| old | 4,096: 50.0 | 0 | 0 | 50.0 | 50.0 |' in text
  assert '| new | 4,096: 90.0 | 4,096 | 4,096 | 90.0 | 90.0 |' in text
  assert (tmp_path / 'plots' / 'ruler.png').exists()
  for mine, each in zip(stages.values(), ((0.5, 0.5, 0, 1), (1, 1, 1, 0.6))):
    mine['ruler']['vt'][0]['each'] = each
  (text,) = comparison.sections(stages, common.base().eval, tmp_path)
  assert (
    '| 50.0 (25-100, 4) | 90.0 (45-100, 4) | +40.0 (-52.8 to +132.8) |' in text
  )
  part = {'one': {'ruler/vt': {'vt': by_length(0.5)}}}
  assert 'ruler: not all of its tasks' in comparison.not_measured(part)
  named = {'one': {'ruler/qa_1': {'qa_1': by_length(0.5)}}}
  (line,) = comparison.summary(named, common.base().eval).splitlines()[1:]
  assert line.split() == ['ruler/qa_1/4096', '(stand-in)', '0.500']


def test_a_model_with_memory_reads_in_windows(monkeypatch, make_mesh):
  """Of train.seq_len tokens, through inference.memory."""
  config, tokens = common.base(), tokenizer.load('bytes')
  config.train.seq_len = 64
  model = llama.Llama(**MODEL, dtype='float32', memory=dict(layers=(1,)))
  params = {'norm': np.ones(2)}
  ends = language_model.stop_token_ids(tokens)
  lm = language_model.from_config(params, model, make_mesh(1, 1), config, ends)
  monkeypatch.setattr(memory, 'nll', lambda p, m, batch, options, *_: options)
  assert lm.nll(None).window == 64
  found = [np.array([5, ends[0], 6])]
  monkeypatch.setattr(memory, 'greedy', lambda p, m, prompts, count, o: found)
  assert [x.tolist() for x in lm.generate([[1, 2]], 5)] == [[5]]
  with pytest.raises(InputError, match='--temperature 0'):
    lm.generate([[1, 2]], 5, sampling=generate.SamplingOptions(1.0))


def test_a_run_with_memory_reads_the_windows_that_it_was_trained_on(
  trained, monkeypatch
):
  config, lines = common.base(), []
  model = llama.Llama(**MODEL, memory=dict(layers=(1,)))
  run = dict(config=dict(train=dict(seq_len=64)))
  monkeypatch.setattr(checkpoint, 'metadata', lambda path: run)
  found = evals.as_trained(config, trained[0], model, lines.append)
  assert (found.train.seq_len, config.train.seq_len) == (64, 2048)
  assert len(lines) == 1 and '64 ' in lines[0] and '2048' in lines[0]
  config.mesh.seq = 3
  with pytest.raises(InputError, match=r'mesh.seq is 3; it must divide 64'):
    evals.as_trained(config, trained[0], model)
  plain = llama.Llama(**MODEL)
  assert evals.as_trained(config, trained[0], plain) is config
  run.clear()  # imported weights name no rows
  assert evals.as_trained(config, trained[0], model) is config


@pytest.mark.parametrize('name, lengths, says', [
  ('ruler/cwe', (200,), 'ruler/cwe at 200 tokens: a prompt needs at least'),
  ('passkey_original', (4096, 100), 'a prompt needs at least'),
  ('perplexity', (4096,), 'from 2 to eval.length 1024'),
  ('first_sentence', (4096,), 'no sentence of 8 to 40 words'),
])  # fmt: skip
def test_lengths_that_cannot_be_are_refused_before_anything_runs(
  name, lengths, says, monkeypatch
):
  monkeypatch.setattr(word_lists, 'load', lambda log: WORDS)
  monkeypatch.setattr(evals.Setup, 'prose', lambda setup: 'x = 1\n' * 90)
  config = common.base()
  config.eval.update(length=1024, lengths=lengths)
  evaluation, part = table.find(name)
  with pytest.raises(InputError, match=says):
    evaluation.check(evals.Setup(config, TOKENS), part)


def test_loss_by_position_needs_a_target_in_each_bucket():
  config = common.base()
  text = np.arange(32)
  for length in (31, 32):
    config.eval.update(length=length)
    setup = evals.Setup(config, TOKENS, Memory(text[:length], sources=(0,)))
    for name in ('position_loss', 'source_loss'):
      if length == 31:
        with pytest.raises(InputError, match=f'{name} .*at least 32'):
          evals.check(setup, [name])
      else:
        evals.check(setup, [name])
  lm = LM(lambda batch: np.ones(batch.tokens.shape), None)
  result = position_loss.EVALUATION.run(lm, setup, '')
  assert result['loss'] == [1.0] * 16 and min(result['tokens']) == 1
  assert position_loss.mean(result, 0, 1) is None  # within the first bucket


@pytest.mark.parametrize('name', ['longppl', 'context_gain'])
def test_documents_too_short_to_score_a_token_are_refused(name):
  config = common.base()
  config.eval.update(length=3)
  setup = evals.Setup(config, TOKENS, Memory(np.arange(9)))
  with pytest.raises(InputError, match=f'{name} .*at least 4, which is 3'):
    evals.check(setup, [name])
  config.eval.length = 4
  evals.check(setup, [name])
  uniform = LM(lambda batch: np.ones(batch.tokens.shape), None)
  evaluation, part = table.find(name)
  points = evaluation.scores(evaluation.run(uniform, setup, part))
  value = points['perplexity' if name == 'longppl' else '3'].value
  assert value == pytest.approx(math.e if name == 'longppl' else 1)
