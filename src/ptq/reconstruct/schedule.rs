//! How many steps a reconstruction makes, within a bound on its multiplications.
//!
//! A step costs a block's own multiplications three times (forward, and the gradients of inputs and weights), and now and
//! then those of all that remains behind it twice (its weights need no gradient). The bound counts multiplications and not
//! seconds, so that the result does not depend on the machine and its load.

use super::Reconstruction;
use super::program::Program;

/// Task-guided gradients per block below which steps are saved instead.
const MIN_TASK_GRADIENTS: usize = 20;
/// A bound never takes away more steps than leaves these.
const MIN_ITERATIONS: usize = 20;

/// Steps per block, and every how many the task-guided gradient is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    pub iterations: usize,
    pub every: usize,
}

/// Multiplications for one window.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Work {
    blocks: f64,
    /// Behind each block, summed.
    tails: f64,
}

impl Schedule {
    /// What the recipe wants, or as much of it as its bound allows: first the task-guided gradient is taken less often,
    /// then steps are left out. `multiplications` are those of the graph's nodes for one window.
    pub fn new(settings: &Reconstruction, program: &Program, multiplications: &[f64]) -> Self {
        let wanted = Schedule {
            iterations: settings.iterations,
            every: settings.tgpl.every,
        };
        let mut work = Work::of(program, multiplications);
        if settings.tgpl.weight == 0.0 {
            work.tails = 0.0;
        }
        wanted.within(settings, work)
    }

    fn within(self, settings: &Reconstruction, work: Work) -> Self {
        let bound = settings.multiplications;
        if bound == 0.0 || self.cost(settings, work) <= bound {
            return self;
        }
        // What is left for one block-step after judging each block before and after.
        let judging = Schedule {
            iterations: 0,
            ..self
        }
        .cost(settings, work);
        let left = (bound - judging).max(bound / 2.0) / settings.batch as f64;
        let iterations = self.iterations as f64;
        let most = (self.iterations / MIN_TASK_GRADIENTS).max(self.every);
        let for_tails = left - 3.0 * work.blocks * iterations;
        let every = if for_tails > 0.0 {
            (2.0 * work.tails * iterations / for_tails).ceil() as usize
        } else {
            most
        };
        let every = every.clamp(self.every, most);
        let step = 3.0 * work.blocks + 2.0 * work.tails / every as f64;
        let fit = (left / step.max(1.0)) as usize;
        Schedule {
            iterations: fit.clamp(MIN_ITERATIONS.min(self.iterations), self.iterations),
            every,
        }
    }

    fn cost(self, settings: &Reconstruction, work: Work) -> f64 {
        let steps = (self.iterations * settings.batch) as f64;
        let judged = 2.0 * settings.crops.judged as f64;
        judged * (work.blocks + work.tails)
            + steps * (3.0 * work.blocks + 2.0 * work.tails / self.every as f64)
    }
}

impl Work {
    fn of(program: &Program, multiplications: &[f64]) -> Self {
        let sum = |nodes: &[usize]| -> f64 { nodes.iter().map(|&n| multiplications[n]).sum() };
        let mut done = program.start();
        let mut work = Work::default();
        for block in &program.blocks {
            for node in program.glue(&done) {
                done[node] = true;
            }
            work.blocks += sum(&block.nodes);
            work.tails += sum(&program.tail(block, &done).nodes);
            for &node in &block.nodes {
                done[node] = true;
            }
        }
        work
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::recipe::Recipe;
    use super::*;

    const WORK: Work = Work {
        blocks: 1e6,
        tails: 1e7,
    };

    fn settings(multiplications: f64) -> Reconstruction {
        let text = include_str!("../../../calibration/standard.yaml");
        let recipe = Recipe::parse(text, std::path::Path::new("standard.yaml")).unwrap();
        let mut settings = recipe.reconstruction.unwrap();
        settings.iterations = 1000;
        settings.batch = 4;
        settings.crops.judged = 32;
        settings.multiplications = multiplications;
        settings
    }

    #[test]
    fn within_its_bound_a_recipe_gets_what_it_wants() {
        let wanted = Schedule {
            iterations: 1000,
            every: 3,
        };
        for bound in [0.0, 1e12] {
            assert_eq!(wanted.within(&settings(bound), WORK), wanted);
        }
    }

    #[test]
    fn a_bound_thins_out_the_task_guided_gradient_before_it_takes_steps_away() {
        let wanted = Schedule {
            iterations: 1000,
            every: 3,
        };
        let mut last = wanted;
        for bound in [3e10, 2e10, 1.5e10, 8e9, 4e9, 2e9] {
            let settings = settings(bound);
            let fit = wanted.within(&settings, WORK);
            assert!(
                fit.cost(&settings, WORK) <= bound * 1.01,
                "{bound}: {fit:?}"
            );
            assert!(fit.every >= last.every && fit.iterations <= last.iterations);
            assert!(fit.iterations == 1000 || fit.every == 1000 / MIN_TASK_GRADIENTS);
            last = fit;
        }
        assert!(last.iterations < 1000 && last.every == 50);
    }

    #[test]
    fn even_a_bound_that_nothing_fits_into_leaves_some_steps() {
        let wanted = Schedule {
            iterations: 1000,
            every: 3,
        };
        assert_eq!(
            wanted.within(&settings(1.0), WORK).iterations,
            MIN_ITERATIONS
        );
    }
}
