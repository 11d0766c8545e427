from training.experiments.head_specialisation.run import main


if __name__ == "__main__":
    main()
