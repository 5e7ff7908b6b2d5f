"""TPU slices from a laptop: request, push code, train, watch, delete.

  request    what to ask Google Cloud for, and what it costs
  commands   runs other programs and prints each command; or only prints
  tree       the files of this checkout, as they go to the hosts
  remote_shell  a line of shell on every host: by gcloud, by plain ssh
  hosts      worker.sh on every host
  queued     v4, v5e, v5p, v6e: queued resources of Cloud TPU
  xpk        TPU7x: GKE through XPK
  supervise  keeps a run alive on queued resources until training has ended
  verbs      what launch/pod.py does with them
  worker.sh  what runs on the hosts

Functions take (terminal, pod): commands.Terminal or DryRun, and request.Pod.
"""
