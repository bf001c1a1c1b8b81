"""LSTM weights to and from other libraries; each module is imported by its own name, and with it what it needs.

    lstm_rot.interop.torch          from_torch, state_dict, to_torch: torch.nn.LSTM
    lstm_rot.interop.flax           from_flax, to_linen, to_nnx: LSTMCell, OptimizedLSTMCell, and RNN around them
    lstm_rot.interop.linen          LSTM, a module in the place of linen.RNN(linen.OptimizedLSTMCell(H))
    lstm_rot.interop.nnx            LSTM, a module in the place of nnx.RNN(nnx.OptimizedLSTMCell(D, H, rngs=rngs))
    lstm_rot.interop.safetensors    save, load: one file with the weights and the config

Only `to_torch` needs torch, and only `safetensors` the package of that name: `pip install torch` and
`pip install safetensors`; each says so where it is missing.
"""
