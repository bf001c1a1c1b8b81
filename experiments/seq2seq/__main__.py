from experiments.harness import main
from experiments.seq2seq import EXPERIMENT

if __name__ == "__main__":
    main(EXPERIMENT)
