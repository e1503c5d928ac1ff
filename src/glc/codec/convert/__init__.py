"""Checkpoints that others published: recognise them, rename their tensors, and write them as ours or theirs.

```
file --reading--> its tensors --layouts: one table of names per kind--> {our network: its state}
                                                                             |
      init_from= of the training stages  <-----------------------------------+--> conversion: weights files
```

| module        | content                                                              |
|---------------|----------------------------------------------------------------------|
| `reading`     | files, without executing anything in them                            |
| `layout`      | what a layout is: networks, names, how to go there and back          |
| `vqgan`       | the blocks of a VQGAN's encoder and decoder, and what they are called |
| `glc_image`   | the released GLC image model                                         |
| `taming`      | VQGANs of taming-transformers                                        |
| `codeformer`  | the VQGAN of CodeFormer                                              |
| `recognition` | which of them a file is, and its networks                            |
| `conversion`  | `glc convert`                                                        |
"""
