"""Third-party checkpoints: recognise them, rename their tensors, and convert them to glc's layout and back.

```
file --read--> its tensors --detect, layouts: one table of names per kind--> {network: state dict}
                                                                             |
      init_from= of the training stages  <-----------------------------------+--> convert: weights files
```
"""
