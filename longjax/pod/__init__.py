"""TPU slices from a laptop: ask for one, put the code there, train, look, end.

  request    what to ask Google Cloud for, and what it costs
  terminal   other programs: each command is shown, or only shown
  tree       the files of this checkout, as they go to the workers
  queued     v4, v5e, v5p, v6e: queued resources of Cloud TPU
  xpk        TPU7x: GKE through XPK
  watch      makes a lost slice again until the training has ended
  verbs      what launch/pod.py does with them
  worker.sh  what runs on the workers

`queued` and `xpk` have the same functions of (terminal, pod).
"""
