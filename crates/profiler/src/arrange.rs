//! Puts a profile in order, and makes small ones of large ones.

use std::{cmp::Reverse, collections::HashMap};

use crate::model::{Block, Profile};

impl Profile {
    /// Blocks with the most instructions first, those that were never executed dropped.
    pub fn arrange(&mut self) {
        let mut order: Vec<usize> = (0..self.blocks.len())
            .filter(|&n| self.blocks[n].executions > 0 || self.blocks[n].executed > 0)
            .collect();
        order.sort_by_key(|&n| {
            let block = &self.blocks[n];
            (Reverse(block.executed), block.rip, block.physical)
        });
        self.keep_blocks(&order);
    }

    /// Blocks in that order, and no others.
    fn keep_blocks(&mut self, order: &[usize]) {
        let new: HashMap<usize, usize> = order.iter().enumerate().map(|(new, &old)| (old, new)).collect();
        let mut blocks: Vec<Option<Block>> = std::mem::take(&mut self.blocks).into_iter().map(Some).collect();
        self.blocks = order.iter().filter_map(|&old| blocks.get_mut(old)?.take()).collect();
        for member in self.code.iter_mut().flat_map(|code| &mut code.members) {
            member.block = member.block.and_then(|old| new.get(&old).copied());
        }
    }

    /// The first blocks with their newest code, without listings and stacks: for who watches a run.
    pub fn top(mut self, blocks: usize) -> Self {
        let order: Vec<usize> = (0..self.blocks.len().min(blocks)).collect();
        self.keep_blocks(&order);
        self.stacks = Default::default();
        let mut new = HashMap::new();
        let mut kept = Vec::new();
        for block in &mut self.blocks {
            block.versions = block.versions.last().copied().into_iter().collect();
            for version in &mut block.versions {
                version.code = *new.entry(version.code).or_insert_with(|| {
                    kept.push(version.code);
                    kept.len() - 1
                });
            }
        }
        let code = std::mem::take(&mut self.code);
        self.code = kept.iter().filter_map(|&n| code.get(n).cloned()).collect();
        for code in &mut self.code {
            code.listing = None;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{Block, Code, Member, Profile, VersionOf};

    fn profile() -> Profile {
        let block = |rip, executed, code: Option<usize>| Block {
            rip,
            executed,
            executions: executed,
            versions: code.map(|code| VersionOf { code, member: 0 }).into_iter().collect(),
            ..Block::default()
        };
        let code = |block| Code {
            members: vec![Member { block: Some(block), ..Member::default() }],
            ..Code::default()
        };
        Profile {
            blocks: vec![block(1, 5, Some(0)), block(2, 0, None), block(3, 9, Some(1))],
            code: vec![code(0), code(2)],
            ..Profile::default()
        }
    }

    #[test]
    fn indices_follow_the_order() {
        let mut all = profile();
        all.arrange();
        assert_eq!(all.blocks.iter().map(|block| block.rip).collect::<Vec<_>>(), [3, 1]);
        for (n, block) in all.blocks.iter().enumerate() {
            assert_eq!(all.code[block.versions[0].code].members[0].block, Some(n));
        }
        let top = all.top(1);
        assert_eq!((top.blocks.len(), top.code.len()), (1, 1));
        assert_eq!(top.code[top.blocks[0].versions[0].code].members[0].block, Some(0));
    }
}
