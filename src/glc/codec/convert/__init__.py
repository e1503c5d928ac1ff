"""Checkpoints that others published: recognise them, rename their tensors, and write them as ours or theirs.

```
file --read--> its tensors --detect, layouts: one table of names per kind--> {our network: its state}
                                                                             |
      init_from= of the training stages  <-----------------------------------+--> convert: weights files
```
"""
