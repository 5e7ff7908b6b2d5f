"""Needles and RULER with SmolLM2-135M, by us and by transformers.

  python tests/bench/answers.py [--lengths 1024,4096] [--samples 2]
      [--tasks needle,vt] [--gguf FILE]

Both answer the same prompts greedily, in float32. Prints the scores of each
with 95 % intervals, how many answers are the same token for token, and the
seconds that each took. Haystack and words are those of
configs/smollm2_135m_abf_16k.py, fetched if they are not in the cache.
"""

import argparse
import os
import pathlib
import sys
import time

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from configs import smollm2_135m_abf_16k
from longjax import weights
from longjax.data import downloads, prepare, tokenizer
from longjax.evals import haystack, needle, prompts, ruler, score, word_lists
from longjax.inference import generate, language_model

DEPTHS = (0.1, 0.5, 0.9)
TASKS = 'needle,niah_single_1,vt,qa_1'


def asked(name, length, samples, tokens, source):
  """([Sample], Task) of a task at a length."""
  if name != 'needle':
    task = ruler.TASKS[name]
    return prompts.samples(task, tokens, source, length, samples, 0), task
  made = (needle.prompt(tokens, source.text, length, d) for d in DEPTHS)
  return [prompts.Sample(ids, needle.KEYWORDS) for ids in made], needle.TASK


def transformers_model(path, ends):
  """(prompts, count) -> list of ids, as language_model.LM has it."""
  import torch
  import transformers

  directory, name = os.path.split(path)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, gguf_file=name, dtype=torch.float32
  )

  def run(asked, count, stopped=None):
    found = []
    for ids in asked:
      given = torch.tensor(np.asarray(ids, np.int64)[None])
      with torch.no_grad():
        out = model.generate(
          given, max_new_tokens=count, do_sample=False, eos_token_id=list(ends),
          attention_mask=torch.ones_like(given),
        )  # fmt: skip
      found.append(generate.until(out[0, len(ids) :].numpy(), ends))
    return found

  return language_model.LM(None, run)


def compare(models, made, task, tokens) -> str:
  """A line: scores, answers that are the same, seconds."""
  answers, cells, seconds = [], [], []
  for lm in models:
    began = time.perf_counter()
    ids = lm.generate([sample.prompt for sample in made], task.count)
    seconds.append(time.perf_counter() - began)
    answers.append([x[: task.count] for x in ids])
    found = score.summary(
      [
        task.score(tokens.decode(x), s.references)
        for x, s in zip(answers[-1], made)
      ]
    )
    low, high = 100 * found['low'], 100 * found['high']
    cells.append(f'{100 * found["score"]:5.1f} ({low:3.0f} to {high:3.0f})')
  same = sum(map(np.array_equal, *answers))
  return (
    f'{cells[0]:>22} {cells[1]:>22} {same:6} of {len(made)} '
    f'{seconds[0]:8.0f} {seconds[1]:8.0f}'
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--gguf', default='')
  parser.add_argument('--lengths', default='1024,4096')
  parser.add_argument('--samples', type=int, default=2)
  parser.add_argument('--tasks', default=TASKS)
  flags = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  lengths = [int(n) for n in flags.lengths.split(',')]
  path = str(downloads.locate(flags.gguf or smollm2_135m_abf_16k.WEIGHTS))
  tokens = tokenizer.load(path)
  store = prepare.held_out(smollm2_135m_abf_16k.get_config(), tokens)
  text = haystack.text(store, tokens, max(lengths))
  source = prompts.Source(text, word_lists.load())
  ends = language_model.stop_token_ids(tokens)
  models = (
    language_model.with_cache(
      *weights.load(path), options=generate.Options(ends, rows=1)
    ),
    transformers_model(path, ends),
  )
  print(
    f'{"":16}{"tokens":>7}{"longjax":>23}{"transformers":>23}'
    f'{"same":>12}{"seconds":>9}{"":9}'
  )
  for length in lengths:
    for name in flags.tasks.split(','):
      made, task = asked(name, length, flags.samples, tokens, source)
      line = compare(models, made, task, tokens)
      print(f'{name:16}{length:7,} {line}', flush=True)


if __name__ == '__main__':
  main()
