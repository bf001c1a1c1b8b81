from experiments.harness import main
from experiments.nets import keep_compiled
from experiments.recall import EXPERIMENT

if __name__ == "__main__":
    keep_compiled()
    main(EXPERIMENT)
