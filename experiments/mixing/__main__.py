from experiments.harness import main
from experiments.mixing import EXPERIMENT

if __name__ == "__main__":
    main(EXPERIMENT)
