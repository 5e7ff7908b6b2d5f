"""How answers are scored, and how sure a score is. Text in, number out."""

import collections
import functools
import math
import re
import string

import numpy as np

from longjax.errors import InputError


def all_references(answer: str, references) -> float:
  """The share of the references that are in the answer (RULER, all-match)."""
  answer = answer.lower()
  return sum(r.lower() in answer for r in references) / len(references)


def any_reference(answer: str, references) -> float:
  """1 if one of the references is in the answer (RULER, part-match)."""
  answer = answer.lower()
  return float(any(r.lower() in answer for r in references))


def normalized(text: str) -> str:
  """As SQuAD compares answers: no case, punctuation or articles."""
  text = ''.join(c for c in text.lower() if c not in string.punctuation)
  return ' '.join(re.sub(r'\b(a|an|the)\b', ' ', text).split())


def exact_match(answer: str, references) -> float:
  """1 if the answer is one of the references, both normalized."""
  return float(normalized(answer) in [normalized(r) for r in references])


def substring_match(answer: str, references) -> float:
  """1 if one of the references is in the answer, both normalized (HELMET)."""
  answer = normalized(answer)
  return float(any(normalized(r) in answer for r in references))


def words(text: str) -> list[str]:
  """Runs of letters and digits in lower case, as ROUGE counts them."""
  return re.findall(r'[a-z0-9]+', text.lower())


def f1(answer: str, references) -> float:
  """The best F1 of words, both normalized (SQuAD)."""
  found = normalized(answer).split()
  return max(_overlap(found, normalized(r).split()) for r in references)


def _overlap(a, b) -> float:
  """F1 of what two lists have in common, repetitions too."""
  common = (collections.Counter(a) & collections.Counter(b)).total()
  return 2 * common / (len(a) + len(b)) if common else 0.0


def rouge_n(answer: str, references, n: int) -> float:
  """The best F1 of runs of n words (ROUGE-N)."""

  def runs(text):
    return list(zip(*(words(text)[i:] for i in range(n))))

  return max(_overlap(runs(answer), runs(r)) for r in references)


def rouge_l(answer: str, references) -> float:
  """The best F1 of the longest common subsequence of words (ROUGE-L)."""

  def one(reference):
    a, b = words(answer), words(reference)
    common = _common(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0

  return max(map(one, references))


def rouges(answer: str, references) -> tuple[float, float, float]:
  """ROUGE-1, ROUGE-2 and ROUGE-L, as SCROLLS has them: without stemming."""
  one, two = (rouge_n(answer, references, n) for n in (1, 2))
  return one, two, rouge_l(answer, references)


@functools.cache
def stemming_scorer():
  """rouge_score's scorer of ROUGE-L; InputError if it is not installed."""
  try:
    from rouge_score import rouge_scorer  # pyright: ignore
  except ImportError:
    raise InputError('ROUGE with stemming needs: pip install rouge-score') \
      from None  # fmt: skip
  return rouge_scorer.RougeScorer(['rougeL'], use_stemmer=True)


def stemmed_rouge_l(answer: str, references) -> float:
  """The best ROUGE-L F1 of stemmed words (HELMET)."""
  scores = (stemming_scorer().score(r, answer) for r in references)
  return max(float(found['rougeL'].fmeasure) for found in scores)


def ndcg(answer: str, references) -> float:
  """NDCG@10 of the longest run of numbers with > between them (HELMET).

  Args:
    answer: names documents by number, the best first.
    references: (number, label) of each.
  """
  answer = re.sub(r'[\[\]:]', '', answer).lower().replace('id', '')
  runs = [m[0] for m in re.finditer(r'\d+(?:\s*>\s*\d+)*', answer)]
  named = [x.strip() for x in max(runs, key=len, default='').split('>')]
  labels = dict(references)
  gain = lambda xs: sum(x / np.log2(i + 2) for i, x in enumerate(xs[:10]))
  best = gain(sorted((max(x, 0) for x in labels.values()), reverse=True))
  found = [max(labels.get(x, 0), 0) for x in dict.fromkeys(named)]
  return float(gain(found) / best) if best else 0.0


def geometric_mean(scores) -> list[float]:
  """What each sample adds to the geometric mean of mean scores.

  SCROLLS takes the mean of each kind of ROUGE over all samples before their
  geometric mean. The numbers here have that as their mean, and their spread is
  its spread by the delta method.

  Args:
    scores: [samples, kinds] from 0 to 1.

  Returns:
    A number for each sample.
  """
  found = np.asarray(scores, np.float64)
  means = found.mean(axis=0)
  if not means.all():
    return [0.0] * len(found)
  whole = math.exp(np.log(means).mean())
  return (whole * (found / means).mean(axis=1)).tolist()


def _common(a, b) -> int:
  """The length of the longest common subsequence."""
  row = [0] * (len(b) + 1)
  for x in a:
    corner = 0
    for j, y in enumerate(b, 1):
      above = row[j]
      row[j] = corner + 1 if x == y else max(above, row[j - 1])
      corner = above
  return row[-1]


def interval(scores) -> tuple[float, float]:
  """The 95 % binomial interval of a mean, after Wilson.

  Args:
    scores: numbers from 0 to 1; shares count as so much of a success, which
      makes the interval wider than need be, never narrower.

  Returns:
    (low, high), both from 0 to 1.
  """
  count = len(scores)
  if not count:
    return 0.0, 1.0
  z, p = 1.959964, math.fsum(scores) / count
  middle = (p + z * z / (2 * count)) / (1 + z * z / count)
  half = math.sqrt(p * (1 - p) / count + z * z / (4 * count**2))
  half *= z / (1 + z * z / count)
  return max(0.0, middle - half), min(1.0, middle + half)


def paired_interval(before, after) -> tuple[float, float] | None:
  """The 95 % interval of the mean difference of paired samples, after Student.

  None without several pairs, and where all differ alike: such samples do not
  tell how far the next may lie off.
  """
  if len(before) != len(after) or len(before) < 2:
    return None
  from scipy import stats

  d = np.subtract(after, before)
  error = d.std(ddof=1) / len(d) ** 0.5
  reach = stats.t.ppf(0.975, len(d) - 1) * error
  return (d.mean() - reach, d.mean() + reach) if error else None


def summary(scores) -> dict:
  """{'score', 'low', 'high', 'samples', 'each'} of scores from 0 to 1."""
  low, high = interval(scores)
  mean = math.fsum(scores) / len(scores) if len(scores) else float('nan')
  return dict(
    score=mean, low=low, high=high, samples=len(scores), each=list(scores)
  )  # fmt: skip
