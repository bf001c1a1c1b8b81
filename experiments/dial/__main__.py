from experiments.dial import EXPERIMENT
from experiments.harness import main
from experiments.nets import keep_compiled, use_all_cores

if __name__ == "__main__":
    use_all_cores()
    keep_compiled()
    main(EXPERIMENT)
