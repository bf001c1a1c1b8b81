from experiments.harness import main
from experiments.nets import use_all_cores
from experiments.newton import EXPERIMENT

if __name__ == "__main__":
    use_all_cores()
    main(EXPERIMENT)
