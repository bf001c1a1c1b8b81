"""The claims under test: what a paper says, where, and its own figure. An experiment names those it tests by id."""

from typing import NamedTuple


class Claim(NamedTuple):
    """One claim; `paper` is the paper's own figure, or why there is none. `leading`: shown first in the README."""

    id: str
    statement: str
    source: str
    paper: str
    leading: bool = False


CLAIMS = {
    claim.id: claim
    for claim in (
        Claim(
            "SUT24-rotate",
            "An LSTM is basically a ResNet rotated by 90 degrees, slightly more complicated: an integrator, now called "
            "the residual stream, and some multiplications.",
            "I. Sutskever, NeurIPS 2024 Test of Time talk",
            "no number: an identity",
            leading=True,
        ),
        Claim(
            "LP16-tied",
            "A deep ResNet with tied weights is exactly a shallow recurrent net.",
            "Liao & Poggio 2016",
            "no number: an identity",
        ),
        Claim(
            "SCH-open",
            "A ResNet is a highway net whose gates are open, or an unfolded LSTM of 1997.",
            "J. Schmidhuber",
            "no number: an identity",
        ),
        Claim(
            "JOZ15-delta",
            "The LSTM computes what is added to its state directly, so its forget gate sets how the gradient fades: "
            "with small random weights the gate is 1/2, a vanishing gradient; a forget bias of 1 or 2 mends it.",
            "Jozefowicz, Zaremba & Sutskever 2015",
            "factor 0.5 a step at forget bias 0",
            leading=True,
        ),
        Claim(
            "HE15-degrade",
            "Deeper plain nets have a higher training error; residual nets the reverse.",
            "He et al. 2015, Fig. 6 (CIFAR-10, convolutional)",
            "plain: 20 < 32 < 44 < 56 layers, plain-110 above 60%; residual: the reverse order",
            leading=True,
        ),
        Claim(
            "HE15-t6",
            "Residual nets of 20 to 110 layers classify CIFAR-10 the better the deeper they are.",
            "He et al. 2015, Table 6",
            "test error, %: 8.75 at 20 layers, 7.51 at 32, 7.17 at 44, 6.97 at 56, 6.61 at 110",
        ),
        Claim(
            "HE15-fig7",
            "The layers of residual nets respond less strongly than those of plain nets, the less the deeper the net.",
            "He et al. 2015, Fig. 7 (standard deviation, after batch norm and before the rectifier)",
            "a figure: residual smaller than plain, deeper smaller",
        ),
        Claim(
            "GREFF16",
            "The blocks of a stage refine one estimate: what each hands on differs from the stage's end by nothing on "
            "average, and by ever less.",
            "Greff, Srivastava & Schmidhuber 2016",
            "a figure: E[x_l - x_end] near 0 in every stage",
        ),
        Claim(
            "HE16-t1",
            "The identity is a residual net's best shortcut: constant factors of a half, or gates half closed at the "
            "start, make it much worse or fail; a gate that begins nearly open costs little if it is on the shortcut "
            "alone, more if the more it keeps the less is added (exclusive).",
            "He et al. 2016, Table 1 (CIFAR-10, ResNet-110)",
            "test error, %: identity 6.61; shortcut-only gate, bias -6 6.91, bias 0 12.86; exclusive gate, bias -6 "
            "8.70, bias 0 fails; constant 0.5/0.5 12.35, 0.5/1 fails",
        ),
        Claim(
            "GERS00-bias",
            "On temporal order with three symbols an LSTM of forget bias 5 learns as fast as that of 1997, which "
            "forgets nothing; at bias 1 it takes longer.",
            "Gers, Schmidhuber & Cummins 2000",
            "bias 5: as fast as 1997; bias 1: about 3 times as long",
        ),
        Claim(
            "JOZ15-bias",
            "A forget bias of 1 closes the gap between the LSTM and the GRU.",
            "Jozefowicz, Zaremba & Sutskever 2015",
            "no number: an order",
        ),
        Claim(
            "SRI15",
            "Plain nets get harder to train with depth, highway nets train at 100 layers.",
            "Srivastava et al. 2015, Fig. 1 (MNIST)",
            "curves, no number read: plain nets worse with each depth, highway nets train at 100 layers",
        ),
        Claim(
            "VEIT16-lesion",
            "Deleting one block barely hurts a trained residual net and destroys a plain one.",
            "Veit et al. 2016 (CIFAR-10; ResNet-110, VGG)",
            "curves, no number read: the residual net barely worse without any one block, VGG at chance",
            leading=True,
        ),
        Claim(
            "VEIT16-paths",
            "Most of the gradient in a residual net comes along short paths, which are few among all.",
            "Veit et al. 2016 (CIFAR-10; ResNet-110: 54 blocks of two layers)",
            "paths 10 to 34 layers long, that is 5 to 17 of the 54 blocks: 0.45% of all paths",
        ),
        Claim(
            "SRI15-lesion",
            "Of a highway net trained on MNIST most layers are nearly idle: deleting one of them changes little.",
            "Srivastava et al. 2015, Fig. 4 (MNIST, 50 layers; errors of the training set)",
            "layers 15 to 45 of 50 nearly idle; the first ones are not",
        ),
        Claim(
            "SEQ14-reverse",
            "Reversing the source sentence makes a sequence-to-sequence LSTM translate better.",
            "Sutskever, Vinyals & Le 2014 (WMT'14 En-Fr)",
            "perplexity 5.8 -> 4.7, BLEU 25.9 -> 30.6",
            leading=True,
        ),
        Claim(
            "SEQ14-open",
            "A plain recurrent net should be easy to train on reversed sources (the authors had not tried it).",
            "Sutskever, Vinyals & Le 2014, conclusion",
            "no number: a conjecture",
            leading=True,
        ),
        Claim(
            "SEQ14-t1",
            "An LSTM that reads a sentence and writes its translation, reversed, in an ensemble and with a beam, beats "
            "a phrase-based system.",
            "Sutskever, Vinyals & Le 2014, Table 1 (WMT'14 En-Fr, test BLEU)",
            "forward, beam 12: 26.17; reversed, beam 12: 30.59; of five, beam 1: 33.00; of two, beam 12: 33.27; of "
            "five, beam 2: 34.50, beam 12: 34.81; phrase-based: 33.30",
        ),
        Claim(
            "SEQ14-depth",
            "Each further layer of LSTM cuts the perplexity by nearly a tenth.",
            "Sutskever, Vinyals & Le 2014, section 3.4",
            "nearly 10% a layer, up to four",
        ),
        Claim(
            "SEQ14-fig2",
            "The vectors of sentences cluster by meaning: they tell who does what to whom, and hardly active from "
            "passive voice.",
            "Sutskever, Vinyals & Le 2014, Fig. 2",
            "no number: a figure",
        ),
        Claim(
            "SEQ14-fig3",
            "Long sentences are translated as well as short ones.",
            "Sutskever, Vinyals & Le 2014, Fig. 3",
            "no degradation below 35 words, a minor one beyond",
        ),
        Claim(
            "VAS17-t2",
            "Attention alone translates better than recurrent nets, for less training.",
            "Vaswani et al. 2017, Table 2 (WMT'14, test BLEU)",
            "base 27.3 En-De, 38.1 En-Fr; big 28.4, 41.0; GNMT + RL, recurrent: 24.6, 39.92",
        ),
        Claim(
            "NOTE-bottleneck",
            "The sequential bottleneck made LSTMs lose to attention.",
            "Vaswani et al. 2017, Table 1; Kaplan et al. 2020, Fig. 7",
            "sequential steps: recurrent n, self-attention 1",
            leading=True,
        ),
        Claim(
            "SUT24-pipeline",
            "The layers of an LSTM on devices of their own, as a pipeline, train several times as fast.",
            "I. Sutskever, NeurIPS 2024, of Sutskever, Vinyals & Le 2014",
            "one layer per GPU: 3.5 times on 8 GPUs",
        ),
        Claim(
            "SEQ14-speed",
            "Four LSTM layers on a GPU each, the softmax on four more, train several times as fast as on one GPU.",
            "Sutskever, Vinyals & Le 2014, section 3.5",
            "1,700 words/s on one GPU, 6,300 on eight: 3.71 times",
        ),
        Claim(
            "KAP20-fig7",
            "LSTMs match Transformers on the early tokens of a context and stop improving after fewer than 100; "
            "Transformers keep improving.",
            "Kaplan et al. 2020, Fig. 7",
            "a figure: the LSTMs' plateau begins before token 100",
        ),
        Claim(
            "VAS17-t1",
            "A layer of self-attention or convolution takes a constant number of sequential operations, a recurrent "
            "one as many as there are positions.",
            "Vaswani et al. 2017, Table 1",
            "sequential operations: self-attention O(1), recurrent O(n), convolutional O(1); work O(n^2 d), O(n d^2), "
            "O(k n d^2); maximum path length O(1), O(n), O(log_k n), of convolutions that are not dilated O(n/k)",
        ),
        Claim(
            "MIN24",
            "A recurrent cell whose gates do not see its state trains many times as fast, by a parallel scan.",
            "Feng et al. 2024",
            "at 512 steps minLSTM 235 times, minGRU 175 times as fast as the sequential cell, on a GPU",
        ),
        Claim(
            "DEER23",
            "Newton's method with a parallel scan evaluates a nonlinear recurrent net faster than step by step.",
            "Lim et al. 2023",
            "GRU of one unit on a V100: 18 times at 1,000 steps, 138 times at 10,000",
        ),
        Claim(
            "PARA25",
            "An LSTM whose units see themselves alone is run in parallel by three iterations of Newton's method, many "
            "times as fast as naively step by step.",
            "ParaRNN, Danieli et al. 2025",
            "3 iterations; up to 665 times",
        ),
        Claim(
            "FLASH24",
            "Fused kernels run recurrent nets many times as fast as a framework's own loop; of a plain dense LSTM "
            "cuDNN's remain the fastest.",
            "FlashRNN, Pöppel et al. 2024",
            "50 times over vanilla PyTorch; slower than cuDNN for a plain dense LSTM",
        ),
        Claim(
            "PRED25",
            "Below a Lyapunov exponent of 0 a recurrence is solved in parallel in few iterations, above it parallel "
            "evaluation gains nothing; the threshold is sharp.",
            "Gonzalez et al. 2025",
            "exponent below 0: O((log T)^2) time; above: no gain",
        ),
        Claim(
            "PCR23",
            "The layers of a residual net, too, can be evaluated in parallel by solving for all of them at once.",
            "DeepPCR, Danieli et al. 2023",
            "MLP: 30 times forward; residual nets of 1,024 layers: 7 times",
        ),
        Claim(
            "ATTNRES26",
            "Along depth, too, a residual net mixes what came before with weights all one, a highway net with products "
            "of its gates, and attention with weights of its own choice.",
            "Attention Residuals, Kimi Team 2026",
            "no number: the form of the mixing matrices: all ones, 1-semiseparable, dense",
        ),
    )
}
